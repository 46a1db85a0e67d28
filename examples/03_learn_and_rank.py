"""Learn from a data frame of events and rank, in one process, without Kafka.

python examples/03_learn_and_rank.py 2000
"""

import sys

import pandas as pd

import headwater

items_file, events_file = headwater.sample_files()  # 48,098 real purchases; take your own tables instead
items = pd.read_csv(items_file, dtype={"item_id": str})
events = pd.read_csv(events_file, dtype=str).head(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)

learner = headwater.learn(items, events)
ranker = headwater.Ranker(learner)
print(ranker.recommend(5, session_items=[events.item_id.iloc[-1]]).item_ids)
