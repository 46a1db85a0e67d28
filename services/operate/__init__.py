"""Commands for operators: adapters, checkpoints, control, dead letters, keys, publishing, replay, topics."""
