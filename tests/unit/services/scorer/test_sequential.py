"""The sequential test: seldom wrong however often it is looked at, and quick where a canary is much worse."""

import random
import statistics

import pytest

from services.scorer.canaries import RecentLists
from services.scorer.sequential import CanaryTest, Tally, ratio
from services.settings.scorer import CanarySettings


def played(seed: int, *, canary_rate: float, lists: int = 3_000, settings: CanarySettings | None = None) -> CanaryTest:
    """Two arms of shoppers who differ among themselves, looked at after every tenth list."""
    draw = random.Random(seed)  # noqa: S311
    test = CanaryTest(settings or CanarySettings(min_shoppers=50))
    shoppers = [(f"u{number}", draw.random() < 0.5, draw.betavariate(2, 8)) for number in range(600)]
    for number in range(lists):
        shopper, in_canary, taste = draw.choice(shoppers)
        rate = taste * (canary_rate if in_canary else 1.0)
        tally = test.canary if in_canary else test.stable
        tally.add(shopper, shown=1, clicked=int(draw.random() < rate))
        if number % 10 == 0:
            test.update()
            if test.is_worse:
                break
    return test


def test_of_canaries_that_are_no_worse_few_are_ended() -> None:
    ended = sum(played(seed, canary_rate=1.0).is_worse for seed in range(60))
    assert ended <= 2  # at most 0.6 are expected; three or more of 60 have a chance of 2 %


def test_a_canary_that_is_much_worse_is_ended_soon_and_a_better_one_never() -> None:
    worse = [played(seed, canary_rate=0.5) for seed in range(5)]
    assert all(test.is_worse for test in worse)
    assert all(test.canary.shown < 1_500 for test in worse)
    better = played(1, canary_rate=1.5)
    assert not better.is_worse
    assert better.canary.click_through > better.stable.click_through


def test_with_few_shoppers_nothing_is_judged() -> None:
    test = played(3, canary_rate=0.0, settings=CanarySettings(min_shoppers=601))
    assert test.p_value == 1.0


def test_the_variance_is_that_between_shoppers() -> None:
    counts = [(4, 1), (2, 2), (6, 0), (3, 1)]
    tally = Tally(max_shoppers=10)
    for shopper, (shown, clicked) in enumerate(counts):
        for number in range(shown):  # one at a time, as they come
            tally.add(f"u{shopper}", shown=1)
            if number < clicked:
                tally.add(f"u{shopper}", clicked=1)
    rate, mean = 4 / 15, 15 / 4
    residuals = [clicked - rate * shown for shown, clicked in counts]
    assert tally.click_through == pytest.approx(rate)
    assert tally.variance == pytest.approx(statistics.variance(residuals) / (4 * mean**2))
    alike = Tally(max_shoppers=10)
    for shopper in range(4):
        alike.add(f"u{shopper}", shown=2, clicked=1)
    assert alike.variance == pytest.approx(0)


def test_shoppers_beyond_the_most_do_not_count() -> None:
    tally = Tally(max_shoppers=2)
    assert [tally.add(shopper, shown=1) for shopper in ("a", "b", "c", "a")] == [True, True, False, True]
    assert (tally.shown, tally.shoppers) == (3, 2)


def test_the_ratio_grows_with_the_evidence_and_never_overflows() -> None:
    grown = [ratio(-0.02, variance, 0.01) for variance in (1e-3, 1e-4, 1e-5)]
    assert grown == sorted(grown)
    assert ratio(-1.0, 1e-12, 0.1) > 1e200


def test_a_list_counts_once_whichever_of_list_and_click_is_read_first() -> None:
    recent = RecentLists(3)
    assert recent.shown("r1", "canary", "ann") == (True, False)
    assert recent.shown("r1", "canary", "ann") == (False, False)
    assert recent.clicked("r1") == ("canary", "ann")
    assert recent.clicked("r1") is None
    assert recent.clicked("r2") is None
    assert recent.shown("r2", "stable", "bob") == (True, True)
    assert recent.clicked("r2") is None
    for number in range(3, 6):
        recent.shown(f"r{number}", "stable", "bob")
    assert recent.shown("r1", "canary", "ann") == (True, False)  # long forgotten
