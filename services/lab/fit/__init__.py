"""Fit: epochs over past events with early stopping, written as a warm start for an updater."""
