"""Ask a scorer for a ranking, a recommendation, a search and an explanation.

HEADWATER_SCORER_URL=http://127.0.0.1:8080 python examples/02_rank_over_http.py mug-1 mug-2
"""

import os
import sys

from headwater import HeadwaterClient

candidates = sys.argv[1:] or ["22423", "85123A"]

with HeadwaterClient(os.environ.get("HEADWATER_SCORER_URL", "http://127.0.0.1:8080"), timeout_seconds=5) as client:
    ranking = client.rank(candidates, user_id="ann", session_items=candidates[:1])
    print(f"adapter {ranking.adapter_version} ranks {', '.join(ranking.item_ids)}")

    recommended = client.recommend(5, session_items=candidates[:1], exclude=candidates[:1])
    print(f"recommended beside {candidates[0]}: {', '.join(recommended.item_ids)}")

    for hit in client.search("blue mug", 3).items:
        print(f"found {hit.item_id}, similarity {hit.similarity:.2f}")

    for item in client.explain(candidates[:1], session_items=candidates[1:]).items:
        print(f"{item.item_id} scores {item.score:.2f}: {item.sentence}")
