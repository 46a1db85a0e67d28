"""`headwater adapters`: what is published, what is served, and changing that."""
