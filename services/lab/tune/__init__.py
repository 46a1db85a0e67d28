"""Searches hyper-parameters over the split of an offline fit."""
