"""Bench: measure a deployment from outside: rankings per second, the cost of swaps, and freshness."""
