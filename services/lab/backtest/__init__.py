"""Replays a data set through the learner and judges every event before it is learnt."""
