"""Fits a model offline, so that an updater begins warm: epochs, early stopping, a bundle."""
