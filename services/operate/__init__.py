"""Commands for operators: adapters, checkpoints, control, dead letters, keys, publish, replay and topics."""
