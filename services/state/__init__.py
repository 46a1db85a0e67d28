"""Shoppers' states outside the workers: one process writes them to Redis or Valkey, every scorer reads them."""
