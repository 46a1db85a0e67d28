"""Scenarios with permanent names; `python -m benchmarks` runs them and writes what it measured as JSON."""
