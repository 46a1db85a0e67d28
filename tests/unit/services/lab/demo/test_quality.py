"""Hits and gains, live beside never updated, always over the same requests."""

import math
from collections.abc import Sequence

import pytest

from peft_adapters.ranking.shoppers import History
from services.lab.demo.quality import Judgement, Quality, Tally

NOBODY = History([], [], [])


def judgement(live_rank: int | None, bought: int = 0) -> Judgement:
    return Judgement(live_rank, NOBODY, bought)


def always(*ranks: int) -> Quality:
    """Quality whose model never updated gives these ranks, one after the other."""
    left = list(ranks)

    def rank(contexts: Sequence[History], bought: Sequence[int]) -> list[int]:
        assert len(contexts) == len(bought)
        return [left.pop(0) for _ in contexts]

    return Quality(rank)


def test_figures_are_those_of_the_definition() -> None:
    tally = Tally()
    for rank in (1, 3, 20, 21, None):
        tally.add(rank)
    assert tally.hr20 == 3 / 5
    assert tally.ndcg20 == pytest.approx((1 + 1 / 2 + 1 / math.log2(21)) / 5)


def test_figures_of_nothing_are_none() -> None:
    assert (Tally().hr20, Tally().ndcg20, always().lift) == (None, None, None)


def test_both_sides_are_counted_over_the_same_requests() -> None:
    quality = always(30, 2)
    quality.add(judgement(1))
    assert quality.live.judged == 0  # not before the other side is known
    quality.judge_waiting()
    quality.add(judgement(None))
    quality.judge_waiting()
    quality.judge_waiting()  # nothing new
    assert (quality.live.judged, quality.never_updated.judged) == (2, 2)
    assert (quality.live.hr20, quality.never_updated.hr20) == (0.5, 0.5)
    assert quality.live.ndcg20 == 0.5
    assert quality.never_updated.ndcg20 == pytest.approx(0.5 / math.log2(3))


def test_the_other_side_ranks_the_same_contexts_for_the_same_items() -> None:
    seen: list[tuple[History, int]] = []

    def rank(contexts: Sequence[History], bought: Sequence[int]) -> list[int]:
        seen.extend(zip(contexts, bought, strict=True))
        return [1] * len(contexts)

    quality = Quality(rank)
    first = History([4, 2], [0, 1], [5, 9])
    quality.add(Judgement(5, first, 9))
    quality.add(Judgement(5, NOBODY, 8))
    quality.judge_waiting()
    assert seen == [(first, 9), (NOBODY, 8)]


def test_lift_is_a_ratio_of_hit_rates() -> None:
    quality = always(1, 21, 21)
    for rank in (1, 2, 21):
        quality.add(judgement(rank))
    quality.judge_waiting()
    assert quality.lift == pytest.approx(2.0)


def test_lift_over_a_model_that_never_hits_is_infinite_and_of_two_such_models_unknown() -> None:
    better, as_bad = always(50), always(50)
    better.add(judgement(1))
    as_bad.add(judgement(None))
    better.judge_waiting()
    as_bad.judge_waiting()
    assert (better.lift, as_bad.lift) == (math.inf, None)
