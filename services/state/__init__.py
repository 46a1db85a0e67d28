"""Shoppers' states in Redis or Valkey: one process writes them, and every scorer reads them."""
