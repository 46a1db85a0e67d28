"""`headwater checkpoints`: commands that list and verify the checkpoints of an updater."""
