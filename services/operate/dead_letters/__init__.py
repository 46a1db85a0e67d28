"""Looks at what was refused, puts it back, or does away with it."""
