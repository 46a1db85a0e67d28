"""Backtest: replay a data set through several policies, and judge every event before it is learnt."""
