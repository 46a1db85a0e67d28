"""`headwater adapters`: commands that list published adapters and control rollouts."""
