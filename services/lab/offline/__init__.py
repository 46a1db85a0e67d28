"""Shared parts of backtest, fit and tune: reading a stream of events, and judging rankings."""
