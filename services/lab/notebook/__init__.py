"""Learning, ranking and backtesting in process, from files or data frames."""
