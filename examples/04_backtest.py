"""Backtest three policies on a table of events: every event is judged before it is learnt.

python examples/04_backtest.py 2000
"""

import sys

import headwater

items, events = headwater.sample_files()

if __name__ == "__main__":  # worker processes import this file
    frame = headwater.backtest(
        items,
        events,
        policies=["live", "cooccurrence", "popularity"],
        seeds=2,
        max_events=int(sys.argv[1]) if len(sys.argv) > 1 else 5_000,
        processes=2,
    )
    print(frame[["hr20", "hr20_ci95", "ndcg20", "ndcg20_ci95"]].round(4))
