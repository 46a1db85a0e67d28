"""Measures a deployment from outside: how fast it answers, what a swap costs, how soon it has learnt."""
