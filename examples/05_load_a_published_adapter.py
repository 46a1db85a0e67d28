"""Load the latest adapter of a registry and rank with it, without a scorer.

python examples/05_load_a_published_adapter.py .headwater/registry items.csv
"""

import sys

import headwater

registry, items = sys.argv[1:3]
ranker = headwater.load_ranker(registry, items=items)  # version=42 loads another than the latest
print(f"version {ranker.version} of {ranker.scenario} ranks {len(ranker)} items")
print(ranker.recommend(5).item_ids)
