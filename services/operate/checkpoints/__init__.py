"""`headwater checkpoints`: what an updater has kept on disk, and what it could go on from."""
