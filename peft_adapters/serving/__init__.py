"""The model that a scoring worker serves: built from a bundle, explained, and refreshed."""
