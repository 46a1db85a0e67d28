"""Session-kNN as a baseline."""

from collections.abc import Sequence

import numpy as np
import torch
from tiny_model import Listed, paired_stream, titled

from peft_adapters.ranking.shoppers import Shoppers, pad
from services.lab.backtest.stan_baseline import StanBaseline
from streams.examples import Example

ITEMS = 30


def examples(count: int, *, seed: int) -> list[Example]:
    return [
        Example(f"e-{place}", b.user_id, b.session_id, b.item_id, b.ts, "purchase", "home", None, 0)
        for place, b in enumerate(paired_stream(count, items=ITEMS, seed=seed))
    ]


def learnt(events: Sequence[Example]) -> StanBaseline:
    baseline = StanBaseline(titled(ITEMS))
    for begin in range(0, len(events), 20):
        baseline.learn(events[begin : begin + 20])
    baseline.publish()
    return baseline


def strangers(ts: int) -> list[Example]:
    return [Example("e", f"new-{row}", None, f"item-{row}", ts, "click", "home", None, 0) for row in range(0, ITEMS, 2)]


def test_it_learns_what_follows_what() -> None:
    """Item 2k is always followed by 2k + 1, whoever buys."""
    events = examples(600, seed=1)
    scores = learnt(events).scores(strangers(events[-1].ts), pad([([row], [0]) for row in range(0, ITEMS, 2)]))
    best = torch.argsort(scores, dim=1, descending=True)[:, 0].tolist()
    assert np.mean([row + 1 == best[place] for place, row in enumerate(range(0, ITEMS, 2))]) > 0.9


def test_popularity_ranks_where_no_session_is_similar() -> None:
    events = examples(60, seed=1)
    baseline = learnt([*events, *[events[0]] * 20])
    (scores,) = baseline.scores(events[:1], pad([([], [])]))
    assert int(scores.argmax()) == baseline.rows[events[0].item_id]
    assert torch.isfinite(scores).all()


def test_lists_are_judged_by_the_scores_of_their_items() -> None:
    events = examples(600, seed=1)
    baseline, shoppers = learnt(events), Shoppers()
    shoppers.update("ann", None, events[-1].ts, 4)
    shown = Listed("ann", events[-1].ts + 1, ("item-5", "item-9"), (False, False))
    (scores,) = baseline.judge_lists([shown], shoppers).scores
    assert scores[0] > scores[1]
