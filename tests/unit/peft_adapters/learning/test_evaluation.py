"""Rolling figures of judged events against hand-made scores; the window forgets, a restart does not."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import random_stream, tiny_learner

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.evaluation import FIGURES, PrequentialEvaluator, list_ndcg
from peft_adapters.settings import LearnerSettings

ITEMS, EVENTS = 50, 40


@pytest.fixture(scope="module")
def batch() -> Batch:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    return learner.observe(random_stream(EVENTS, items=ITEMS, seed=0))


def scores(batch: Batch, *, own: float, other: float = 0.0) -> torch.Tensor:
    """Every event's item at one score, all others at another. [events, items]."""
    table = torch.full((len(batch), ITEMS), other)
    table[torch.arange(len(batch)), torch.from_numpy(batch.items)] = own
    return table


def test_nothing_judged_is_no_figure() -> None:
    assert PrequentialEvaluator().values() == {}


def test_a_perfect_model(batch: Batch) -> None:
    prequential = PrequentialEvaluator()
    prequential.update(batch, scores(batch, own=20.0))
    values = prequential.values()
    assert values["hr20"] == values["ndcg10"] == 1
    assert values["roc_auc"] == pytest.approx(1, abs=0.01)
    assert values["normalised_entropy"] < 0.2
    assert values.keys() >= set(FIGURES)
    assert values["normalised_entropy"] == pytest.approx(values["log_loss"] / math.log(2))


def test_a_model_that_has_it_the_wrong_way_round(batch: Batch) -> None:
    prequential = PrequentialEvaluator()
    prequential.update(batch, scores(batch, own=-20.0))
    values = prequential.values()
    assert values["hr20"] == values["ndcg10"] == 0
    assert values["roc_auc"] < 0.01


def test_ties_count_against_the_item(batch: Batch) -> None:
    prequential = PrequentialEvaluator()
    prequential.update(batch, scores(batch, own=0.0))
    assert prequential.values()["hr20"] == 0


def test_scores_that_are_no_numbers_are_no_hits(batch: Batch) -> None:
    prequential = PrequentialEvaluator()
    prequential.update(batch, torch.full((EVENTS, ITEMS), torch.nan))
    assert prequential.values()["hr20"] == prequential.values()["ndcg10"] == 0


def test_random_scores_are_as_good_as_chance(batch: Batch) -> None:
    prequential = PrequentialEvaluator()
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        prequential.update(batch, torch.randn(EVENTS, ITEMS, generator=generator))
    values = prequential.values()
    chance, spread = 20 / ITEMS, math.sqrt(0.4 * 0.6 / 1_000)
    assert abs(values["hr20"] - chance) < 4 * spread
    assert values["roc_auc"] == pytest.approx(0.5, abs=0.06)
    assert values["normalised_entropy"] > 0.95  # nothing is known that the label's share does not say


def test_ndcg_by_hand(batch: Batch) -> None:
    """The item third of all: two better ones."""
    table = scores(batch, own=1.0)
    for event, item in enumerate(batch.items):
        table[event, [(item + 1) % ITEMS, (item + 2) % ITEMS]] = 2.0
    prequential = PrequentialEvaluator()
    prequential.update(batch, table)
    assert prequential.values()["ndcg10"] == pytest.approx(1 / math.log2(4))


def test_slices_are_of_cold_items_and_new_users(batch: Batch) -> None:
    cold = np.arange(EVENTS) < 10
    sliced = replace(batch, first_of_item=cold, new_shopper=~cold)
    table = scores(sliced, own=1.0)
    table[10:] = scores(sliced, own=-1.0)[10:]
    prequential = PrequentialEvaluator()
    prequential.update(sliced, table)
    values = prequential.values()
    assert (values["hr20_cold_item"], values["hr20_new_user"]) == (1, 0)
    assert values["hr20"] == pytest.approx(10 / EVENTS)
    whole = PrequentialEvaluator()
    whole.update(replace(batch, first_of_item=~cold & cold, new_shopper=~cold & cold), table)
    assert "hr20_cold_item" not in whole.values()


def test_what_leaves_the_window_is_forgotten(batch: Batch) -> None:
    rolling, fresh = PrequentialEvaluator(window_events=EVENTS), PrequentialEvaluator(window_events=EVENTS)
    rolling.update(batch, scores(batch, own=-5.0))
    rolling.update(batch, scores(batch, own=5.0))
    fresh.update(batch, scores(batch, own=5.0))
    assert rolling.values()["hr20"] == pytest.approx(1)
    assert rolling.values()["ndcg10"] == pytest.approx(fresh.values()["ndcg10"])


def test_sampled_columns_are_corrected(batch: Batch) -> None:
    """Judged on candidates that stand for many, a score's lift over chance is about the same as over all items."""
    columns = np.unique(np.concatenate([batch.items, np.arange(0, ITEMS, 2)]))
    others = ~np.isin(columns, batch.items)
    expected = torch.from_numpy(np.where(others, others.sum() / (ITEMS - (~others).sum()), 1.0)).log().float()
    sampled = replace(batch, columns=columns, candidates=columns, log_expected=expected)
    table = scores(batch, own=2.0)
    whole, part = PrequentialEvaluator(), PrequentialEvaluator()
    whole.update(batch, table)
    part.update(sampled, table[:, torch.from_numpy(columns)])
    assert part.values()["log_loss"] == pytest.approx(whole.values()["log_loss"], rel=0.05)


def test_restored_goes_on_with_the_same_figures(batch: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(EVENTS, ITEMS, generator=generator) for _ in range(6)]
    unkilled = PrequentialEvaluator(window_events=100)
    for table in tables[:3]:
        unkilled.update(batch, table)
    restored = PrequentialEvaluator(window_events=100)
    restored.load_state_dict(json.loads(json.dumps(unkilled.state_dict())))
    for table in tables[3:]:
        unkilled.update(batch, table)
        restored.update(batch, table)
    assert restored.values() == pytest.approx(unkilled.values(), rel=1e-9)
    assert restored.state_dict() == unkilled.state_dict()


# ---- lists


def test_list_ndcg_by_hand() -> None:
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    scores = torch.tensor([0.4, 0.9, 0.1, 0.4])
    assert list_ndcg(scores, [False, True, False, False]) == 1.0
    assert list_ndcg(scores, [True, False, False, True]) == pytest.approx((second + third) / (1 + second))
    assert list_ndcg(scores, [False, False, False, True]) == pytest.approx(third)  # a tie stays as shown
    assert list_ndcg(torch.tensor([math.nan, 0.0]), [True, False]) == pytest.approx(second)
    assert list_ndcg(torch.arange(12.0), [True] + [False] * 11) == 0.0  # beyond the cutoff
