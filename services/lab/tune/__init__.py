"""Tune: search hyper-parameters over the split of an offline fit."""
