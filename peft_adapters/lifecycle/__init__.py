"""The life of a learner: checkpoint, gate, publication and warm start."""
