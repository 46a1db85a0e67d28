"""LightGBM's LambdaMART as a baseline: its features, and that it learns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Listed, paired_stream, titled

from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from services.lab.backtest import policies
from services.lab.backtest.lambdamart_features import FEATURES, CandidateFeatures, Request, log_prices
from services.lab.backtest.policies import parse_policies, require_installed
from services.settings import SettingsError
from streams.examples import Example

pytest.importorskip("lightgbm")

from services.lab.backtest.lambdamart_baseline import LambdaMartBaseline

ITEMS = 30
DAY_MS, NOW = 86_400_000, 1_700_000_000_000
ROWS = {item[0]: row for row, item in enumerate(titled(ITEMS))}
TEXT = np.eye(ITEMS, dtype=np.float32)


def examples(count: int, *, seed: int) -> list[Example]:
    return [
        Example(f"e-{place}", b.user_id, b.session_id, b.item_id, b.ts, "purchase", "home", None, 0)
        for place, b in enumerate(paired_stream(count, items=ITEMS, seed=seed))
    ]


def learnt(events: Sequence[Example], *, seed: int = 0) -> LambdaMartBaseline:
    baseline = LambdaMartBaseline(ROWS, TEXT, prices={}, guests=(), seed=seed)
    for begin in range(0, len(events), 50):
        baseline.learn(events[begin : begin + 50])
    baseline.publish()
    return baseline


def paired(ts: int) -> tuple[list[Example], Contexts]:
    first = range(0, ITEMS, 2)
    strangers = [Example("e", f"new-{row}", None, f"item-{row}", ts, "click", "home", None, 0) for row in first]
    return strangers, pad([([row], [0]) for row in first])


def share_found(baseline: LambdaMartBaseline, ts: int) -> float:
    best = baseline.scores(*paired(ts)).argmax(dim=1).tolist()
    return float(np.mean([row + 1 == best[place] for place, row in enumerate(range(0, ITEMS, 2))]))


@pytest.mark.parametrize("count", [300, 1_200], ids=["before the first fit", "after it"])
def test_it_learns_what_follows_what(count: int) -> None:
    """Item 2k is always followed by 2k + 1, whoever buys."""
    events = examples(count, seed=1)
    assert share_found(learnt(events), events[-1].ts) > 0.8


def test_a_seed_ranks_the_same_each_time() -> None:
    events = examples(700, seed=1)
    first, second = (learnt(events).scores(*paired(events[-1].ts)) for _ in range(2))
    assert torch.equal(first, second)


def test_trees_rank_when_they_are_published() -> None:
    baseline, events = learnt(examples(450, seed=1)), examples(600, seed=1)
    before = baseline._served
    baseline.learn(events[450:])
    assert baseline._served is before is None
    baseline.publish()
    assert baseline._served is not None


def test_lists_are_judged_by_the_scores_of_their_items() -> None:
    events = examples(1_200, seed=1)
    baseline, shoppers = learnt(events), Shoppers()
    shoppers.update("ann", None, events[-1].ts, 4)
    shown = Listed("ann", events[-1].ts + 1, ("item-5", "item-9"), (False, False))
    (scores,) = baseline.judge_lists([shown], shoppers).scores
    assert scores[0] > scores[1]


def features_after(events: Sequence[tuple[str, int, int]], request: Request, context: Contexts) -> dict[int, Any]:
    """Return features by row and name after events (shopper, row, day), each in a session of its own."""
    features = CandidateFeatures(TEXT, log_prices(list(ROWS), {"item-0": 2.0, "item-1": 8.0, "item-2": 0.0}), {"guest"})
    for place, (user, row, day) in enumerate(events):
        example = Example("e", user, None, f"item-{row}", NOW + day * DAY_MS, "purchase", "home", None, 0)
        features.count([example], np.array([row]), [[]], np.array([place + 1]))
    (found,) = features.of_candidates([request], context, [np.arange(3)])
    by_row = zip(found.rows.tolist(), found.features.tolist(), strict=True)
    return {row: dict(zip(FEATURES, values, strict=True)) for row, values in by_row}


def test_features_of_an_item_the_shopper_had() -> None:
    """Ann had item 0 on days 0 and 10, and asks on day 12; bob had item 1 once."""
    events = [("ann", 0, 0), ("bob", 1, 1), ("ann", 0, 10)]
    request, context = Request("ann", NOW + 12 * DAY_MS), pad([([0, 0], [1, 2])])
    found = features_after(events, request, context)
    assert found[0]["days_since"] == pytest.approx(np.log1p(2.0))
    assert found[0]["sessions_since"] == pytest.approx(np.log1p(1))
    assert found[0]["sessions_share"] == 1
    assert found[0]["gap_over_mean"] == pytest.approx(np.log(2 / 10), abs=0.02)
    assert found[0]["repeat_rate"] == pytest.approx(np.log(2 / 7))
    assert found[1]["repeat_rate"] == pytest.approx(np.log(1 / 6))
    assert np.isnan(found[1]["days_since"])
    assert found[0]["repeats_share"] == 0.5
    assert found[0]["text_history"] == 1
    assert found[0]["text_session"] == 0
    assert found[1]["age_hours"] == pytest.approx(np.log1p(11 * 24))
    assert np.isnan(found[2]["age_hours"])


def test_prices_are_compared_with_the_session() -> None:
    found = features_after([("ann", 0, 0)], Request("guest", NOW), pad([([0, 5], [0, 1])]))
    assert found[1]["price_over_session"] == pytest.approx(np.log(4.0))
    assert np.isnan(found[2]["price"])
    assert (found[1]["guest"], found[1]["session_items"], found[1]["history_items"]) == (1, 1, 1)


def test_what_the_shopper_took_next_the_last_time() -> None:
    found = features_after([], Request("ann", NOW), pad([([0, 2, 1, 0], [0, 1, 1, 1])]))
    assert [found[row]["next_last_time"] for row in range(3)] == [0, 1, 0.5]


def test_one_request_does_not_change_another() -> None:
    features = CandidateFeatures(TEXT, log_prices(list(ROWS), {}), ())
    contexts = pad([([0, 2, 1, 0], [0, 1, 1, 1]), ([], []), ([0, 2, 1, 0], [0, 1, 1, 1])])
    first, nothing, again = features.of_candidates([Request("ann", NOW)] * 3, contexts, [np.arange(3)] * 3)
    np.testing.assert_array_equal(first.features, again.features)
    assert nothing.features[:, FEATURES.index("next_last_time")].tolist() == [0, 0, 0]


def test_without_lightgbm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"`lambdamart` needs LightGBM.*pip install 'headwater\[rivals\]'"):
        require_installed(parse_policies(["live", "lambdamart"]))
    require_installed(parse_policies(["live", "stan"]))
