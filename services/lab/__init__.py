"""Offline work: backtest, fit, tune, bench and demo."""
