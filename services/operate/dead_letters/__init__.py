"""`headwater dead-letters`: commands that list, replay and delete refused events."""
