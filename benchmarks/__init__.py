"""Benchmark scenarios with permanent names, and their results as JSON in git."""
