"""River's factorisation machine as a baseline: it ranks as river says, and it learns."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_model import Listed, paired_stream, titled

from peft_adapters.ranking.shoppers import Shoppers, pad
from services.lab.backtest.river_baseline import RiverBaseline
from streams.examples import Example

ITEMS = 30


def examples(count: int, *, seed: int) -> list[Example]:
    return [
        Example(f"e-{place}", b.user_id, b.session_id, b.item_id, b.ts, "purchase", "home", None, 0)
        for place, b in enumerate(paired_stream(count, items=ITEMS, seed=seed))
    ]


def learnt(events: Sequence[Example], *, seed: int = 0) -> RiverBaseline:
    baseline = RiverBaseline(titled(ITEMS), seed=seed)
    for begin in range(0, len(events), 20):
        baseline.learn(events[begin : begin + 20])
    baseline.publish()
    return baseline


@pytest.fixture(scope="module")
def baseline() -> RiverBaseline:
    return learnt(examples(600, seed=1))


def test_scores_are_what_river_predicts_up_to_what_all_items_share(baseline: RiverBaseline) -> None:
    (event,) = examples(2, seed=9)[:1]
    newest = [4, 4, 7, 9, 11]
    scores = baseline.scores([event], pad([(newest, [0] * 5)]))[0].numpy()
    side = {f"user {event.user_id}": 1.0, "after 4": 1.0, "after 7": 0.6, "after 9": 0.36}
    odds = [
        np.log(p / (1 - p))
        for row in range(ITEMS)
        for p in [baseline._model.predict_proba_one({**side, f"candidate {row}": 1.0})[True]]
    ]
    np.testing.assert_allclose(scores - scores[0], np.array(odds) - odds[0], atol=1e-3)


def test_it_learns_what_follows_what(baseline: RiverBaseline) -> None:
    """Item 2k is always followed by 2k + 1, whoever buys."""
    first = [f"item-{row}" for row in range(0, ITEMS, 2)]
    strangers = [Example("e", f"new-{row}", None, item, 0, "click", "home", None, 0) for row, item in enumerate(first)]
    scores = baseline.scores(strangers, pad([([row], [0]) for row in range(0, ITEMS, 2)]))
    best = torch.argsort(scores, dim=1, descending=True)[:, :3].tolist()
    assert np.mean([row + 1 in best[place] for place, row in enumerate(range(0, ITEMS, 2))]) > 0.6


def test_what_is_learnt_ranks_when_it_is_published() -> None:
    baseline, events = RiverBaseline(titled(ITEMS), seed=0), examples(20, seed=1)
    context = pad([([], [])] * 20)
    baseline.learn(events)
    assert not baseline.scores(events, context).any()
    baseline.publish()
    assert baseline.scores(events, context).any()


def test_the_same_seed_gives_the_same_scores_and_another_one_others() -> None:
    events = examples(40, seed=1)
    context = pad([([1], [0])] * 40)
    first, same, other = (learnt(events, seed=seed).scores(events, context) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_list_is_scored_by_what_was_before_it(baseline: RiverBaseline) -> None:
    shoppers = Shoppers()
    shoppers.update("ann", None, 1_000, 4)
    shoppers.update("ann", None, 3_000, 8)
    (scores,) = baseline.judge_lists([Listed("ann", 2_000, ("item-9", "item-5"), (False, False))], shoppers).scores
    event = Example("e", "ann", None, "item-1", 2_000, "click", "home", None, 0)
    expected = baseline.scores([event], pad([([4], [0])]))[0][[9, 5]]
    torch.testing.assert_close(scores, expected)
