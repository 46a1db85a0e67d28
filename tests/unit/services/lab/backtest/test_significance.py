"""The paired bootstrap on cases whose interval is known."""

from array import array
from collections.abc import Sequence
from math import log2, sqrt

import numpy as np
import pytest

from services.lab.backtest.significance import differences, paired_interval
from services.lab.offline.judging import Ranks


def ranked(ranks: Sequence[int]) -> Ranks:
    return Ranks(rank=array("i", ranks))


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.3, 2.0, size=(1, 2_000))
    low, high = paired_interval(values)
    half = 1.96 * values.std() / sqrt(2_000)
    assert low[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_constant_difference_has_no_width_and_resamples_are_always_the_same() -> None:
    low, high = paired_interval(np.full((2, 50), 0.25))
    assert low == pytest.approx([0.25, 0.25])
    assert high == pytest.approx([0.25, 0.25])
    values = np.random.default_rng(1).random((3, 40))
    np.testing.assert_array_equal(paired_interval(values), paired_interval(values))


def test_it_is_paired() -> None:
    """One policy is better in every event by a little, though events differ by far more."""
    hard = np.random.default_rng(0).integers(1, 20, size=400)
    gain = differences({"live": [ranked(hard.tolist())], "frozen": [ranked((hard + 1).tolist())]}, "live")["frozen"]
    expected = np.mean(1 / np.log2(hard + 1.0) - np.where(hard + 1 <= 20, 1 / np.log2(hard + 2.0), 0.0))
    assert gain["ndcg20"]["difference"] == pytest.approx(expected)
    assert 0 < gain["ndcg20"]["low"] < expected < gain["ndcg20"]["high"]
    assert gain["hr20"]["difference"] == gain["hr20"]["low"] == gain["hr20"]["high"] == 0


def test_what_makes_no_difference_has_zero_inside() -> None:
    generator = np.random.default_rng(3)
    one, other = (ranked(generator.integers(1, 40, size=500).tolist()) for _ in range(2))
    gain = differences({"live": [one], "other": [other]}, "live")["other"]
    for figure in (gain["ndcg20"], gain["hr20"]):
        assert figure["low"] < 0 < figure["high"]


def test_seeds_are_averaged_in_each_event() -> None:
    results = {"live": [ranked([1, 1]), ranked([3, 1])], "frozen": [ranked([21, 1]), ranked([21, 3])]}
    gain = differences(results, "live")["frozen"]
    assert gain["hr20"]["difference"] == pytest.approx(0.5)
    assert gain["ndcg20"]["difference"] == pytest.approx(((1 + 1 / log2(4)) / 2 + 1 - (1 + 1 / log2(4)) / 2) / 2)
    assert gain["hr20"]["relative"] == pytest.approx(1.0)


def test_nothing_is_no_base_for_a_share_and_one_policy_has_no_other() -> None:
    gain = differences({"live": [ranked([1])], "none": [ranked([90])]}, "live")["none"]
    assert gain["ndcg20"]["relative"] is None
    assert differences({"live": [ranked([1])]}, "live") == {}
