"""What backtest, fit and tune share: reading a stream of events and judging rankings of it."""
