"""Clicks and purchases of a stream that knows their probabilities: recovered, in time or late, and only once seen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_model import Bought, Listed, tiny_learner

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import LearnerSettings

ITEMS, LENGTH = 24, 8
CLICK = np.where(np.arange(ITEMS) % 2, 0.5, 0.15)  # by item
PURCHASE = np.where(np.arange(ITEMS) < 12, 0.6, 0.1)  # of what is clicked, whatever its click probability


class Shop(NamedTuple):
    """What was shown, and what of it is known only later."""

    lists: list[Listed]
    late: list[Listed]


def shop(lists: int, *, seed: int, late_share: float = 0.0, from_minute: int = 0) -> Shop:
    """Lists of random items; of the purchases, `late_share` come after their list was learnt."""
    rng = np.random.default_rng(seed)
    made = Shop([], [])
    for index in range(lists):
        items = rng.permutation(ITEMS)[:LENGTH]
        clicked = rng.random(LENGTH) < CLICK[items]
        bought = clicked & (rng.random(LENGTH) < PURCHASE[items])
        late = bought & (rng.random(LENGTH) < late_share)
        ids = tuple(f"item-{item}" for item in items)
        one = Listed(f"u{index % 50}", 60_000 * (from_minute + index), ids, tuple(clicked.tolist()))
        made.lists.append(one._replace(purchases=chosen(ids, bought & ~late)))
        for item_id in chosen(ids, late):
            alone: dict[str, Any] = {"item_ids": (item_id,), "purchases": (item_id,), "places": (ids.index(item_id),)}
            made.late.append(one._replace(clicked=(False,), is_correction=True, **alone))
    return made


def chosen(ids: Sequence[str], flags: np.ndarray) -> tuple[str, ...]:
    return tuple(item_id for item_id, was in zip(ids, flags.tolist(), strict=True) if was)


def learn(learner: Learner, made: Shop, size: int = 10) -> None:
    """Clicks at once, then their lists, then what comes late of lists learnt before."""
    late = list(made.late)
    for start in range(0, len(made.lists), size):
        part = made.lists[start : start + size]
        clicks = [
            Bought(shown.user_id, None, item_id, shown.ts + 1)
            for shown in part
            for item_id in chosen(shown.item_ids, np.array(shown.clicked))
        ]
        learner.learn(learner.observe(clicks))
        due = [one for one in late if one.ts < part[0].ts - 600_000]
        late = late[len(due) :]
        learner.learn_lists(learner.observe_lists([*due, *part]))


@pytest.fixture
def learner() -> Learner:
    return tiny_learner(LearnerSettings(lora=False), items=ITEMS)


def judged(learner: Learner, lists: Sequence[Listed]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probabilities of what is in lists, and its items."""
    batch = learner.observe_lists([shown._replace(clicked=(False,) * LENGTH, purchases=()) for shown in lists])
    return {name: own.numpy() for name, own in learner.judge_lists(batch).probabilities.items()}, batch.items


def error_of(learner: Learner, outcome: str) -> float:
    """Prequential calibration error."""
    error = learner.lists.outcomes.judged[outcome].error()
    assert error is not None
    return error


def log_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected, by the true probabilities."""
    return float(-(truth * np.log(probability) + (1 - truth) * np.log1p(-probability)).mean())


@pytest.mark.parametrize("late_share", [0.0, 0.4])
def test_the_true_probabilities_are_recovered(learner: Learner, late_share: float) -> None:
    """Mean error below 0.03 and 0.02 an item, at base rates of 0.33 and 0.11; nine tenths of what can be known are."""
    learn(learner, shop(1_500, seed=1, late_share=late_share))
    probabilities, items = judged(learner, shop(200, seed=2, from_minute=1_500).lists)
    for outcome, truth, tolerance in (("click", CLICK, 0.03), ("purchase", CLICK * PURCHASE, 0.02)):
        predicted, true = probabilities[outcome], truth[items]
        by_item = np.bincount(items, predicted, ITEMS) / np.bincount(items, minlength=ITEMS)
        assert np.abs(by_item - truth).mean() < tolerance
        base, best = log_loss(np.full_like(true, true.mean()), true), log_loss(true, true)
        assert log_loss(predicted, true) < best + 0.1 * (base - best)
        assert predicted.mean() == pytest.approx(true.mean(), rel=0.1)
        assert error_of(learner, outcome) < 0.04  # its beginnings included
    assert (probabilities["purchase"] < probabilities["click"]).all()


def test_without_purchases_there_is_no_probability_of_one_and_the_head_stands_still(learner: Learner) -> None:
    assert learner.lists.outcomes.probabilities() is None
    made = shop(30, seed=1)
    learn(learner, Shop([shown._replace(purchases=()) for shown in made.lists], []))
    known = learner.lists.outcomes.probabilities()
    assert known is not None
    assert known.purchase is None
    assert learner.lists.outcomes.state_dict()["purchase"]["slow"]["weights"].count_nonzero() == 1  # the start
    assert set(judged(learner, made.lists)[0]) == {"click"}
    assert learner.lists.outcomes.judged["purchase"].error() is None


def test_purchases_leave_the_score_alone(learner: Learner) -> None:
    other = tiny_learner(LearnerSettings(lora=False), items=ITEMS)
    made = shop(100, seed=3)
    learn(learner, made)
    learn(other, Shop([shown._replace(purchases=()) for shown in made.lists], []))
    assert torch.equal(learner.ranker.heads, other.ranker.heads)
    assert torch.equal(learner.ranker.residuals["candidate"], other.ranker.residuals["candidate"])


def test_a_late_purchase_is_no_click_anew(learner: Learner) -> None:
    other = tiny_learner(LearnerSettings(lora=False), items=ITEMS)
    made = shop(40, seed=4, late_share=0.5)
    for each in (learner, other):
        learn(each, Shop(made.lists, []))
    shown, clicked = learner.ranker.counters.shown.copy(), learner.ranker.counters.clicked.copy()
    heads = learner.lists.heads.clone()
    loss = learner.learn_lists(learner.observe_lists(made.late[:3]))
    assert loss == 0.0
    assert learner.ranker.counters.shown.tolist() == shown.tolist()
    assert learner.ranker.counters.clicked.tolist() == clicked.tolist()
    assert learner.lists.feedback.state_dict() == other.lists.feedback.state_dict()
    assert (learner.lists.heads - heads).abs().max() < 0.1  # Adam's momentum alone
    ours, theirs = (judged(each, made.lists)[0]["purchase"].mean() for each in (learner, other))
    assert ours > theirs


def test_a_list_of_no_weight_says_nothing_of_probabilities(learner: Learner) -> None:
    made = shop(20, seed=5)
    learn(learner, made)
    before, error = learner.lists.outcomes.state_dict(), error_of(learner, "click")
    learner.learn_lists(learner.observe_lists([shown._replace(weight=0.0) for shown in made.lists]))
    after = learner.lists.outcomes.state_dict()
    for outcome in ("click", "purchase"):
        for part in ("slow", "fast"):
            assert torch.equal(after[outcome][part]["weights"], before[outcome][part]["weights"])
    assert error_of(learner, "click") == pytest.approx(error)
