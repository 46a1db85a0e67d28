"""The model that a scoring worker serves: built from bundles, refreshed with new items, explained."""
