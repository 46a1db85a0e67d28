"""Freshness: from publication to the first answer of an adapter whose offsets cover the event."""

from collections.abc import Mapping

import pytest

from peft_adapters.errors import VersionNotFoundError
from services.lab.demo.freshness import Freshness, percentile
from streams.delivery import Delivery

TOPIC = "headwater.purchases"


def delivery(offset: int, published_seconds: float, *, partition: int = 0, error: Exception | None = None) -> Delivery:
    if error is not None:
        return Delivery(None, TOPIC, None, None, None, error)
    return Delivery(None, TOPIC, partition, offset, round(published_seconds * 1000), None)


def offsets_by_version(table: dict[int, dict[int, int]]) -> Freshness:
    """Freshness over adapters given as version -> partition -> next offset."""

    def offsets_of(version: int) -> Mapping[str, int]:
        if version not in table:
            raise VersionNotFoundError(f"no version {version}")
        return {f"{TOPIC}/{partition}": offset for partition, offset in table[version].items()}

    return Freshness(offsets_of)


def test_an_event_counts_at_the_first_answer_whose_adapter_covers_it() -> None:
    freshness = offsets_by_version({1: {0: 0}, 2: {0: 2}, 3: {0: 3}})
    for offset in range(3):
        freshness.delivered(delivery(offset, 100.0 + offset))
    freshness.answered(1, 103.0)
    assert freshness.seconds() == []
    freshness.answered(2, 104.0)
    assert freshness.seconds() == [4.0, 3.0]
    assert freshness.waiting == 1
    freshness.answered(3, 105.0)
    assert freshness.seconds() == [4.0, 3.0, 3.0]
    assert freshness.waiting == 0


def test_a_later_answer_of_the_same_or_an_older_adapter_changes_nothing() -> None:
    freshness = offsets_by_version({2: {0: 1}, 3: {0: 2}})
    freshness.delivered(delivery(0, 100.0))
    freshness.delivered(delivery(1, 100.0))
    freshness.answered(3, 101.0)
    freshness.answered(2, 109.0)
    freshness.answered(3, 110.0)
    assert freshness.seconds() == [1.0, 1.0]


def test_partitions_are_covered_each_by_its_own_offset() -> None:
    freshness = offsets_by_version({1: {0: 5, 1: 0}, 2: {0: 5, 1: 1}})
    freshness.delivered(delivery(4, 10.0, partition=0))
    freshness.delivered(delivery(0, 10.0, partition=1))
    freshness.answered(1, 11.0)
    assert (freshness.seconds(), freshness.waiting) == ([1.0], 1)
    freshness.answered(2, 13.0)
    assert (freshness.seconds(), freshness.waiting) == ([1.0, 3.0], 0)


def test_an_answer_that_is_quicker_than_the_confirmation_still_counts_when_it_came() -> None:
    freshness = offsets_by_version({1: {0: 1}})
    freshness.answered(1, 100.5)
    freshness.delivered(delivery(0, 100.0))
    assert freshness.seconds() == [0.5]
    freshness.delivered(delivery(1, 101.0))
    assert freshness.waiting == 1


def test_a_version_pruned_before_it_was_looked_up_is_passed_over() -> None:
    freshness = offsets_by_version({3: {0: 1}})
    freshness.delivered(delivery(0, 100.0))
    freshness.answered(2, 101.0)
    assert freshness.waiting == 1
    freshness.answered(3, 102.0)
    assert freshness.seconds() == [2.0]


def test_what_was_not_confirmed_is_not_measured() -> None:
    freshness = offsets_by_version({1: {0: 10}})
    freshness.delivered(delivery(0, 1.0, error=RuntimeError("refused")))
    freshness.answered(1, 2.0)
    assert (freshness.seconds(), freshness.waiting) == ([], 0)


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0), (0.1, 1.0), (99.1, 100.0)]
)
def test_a_percentile_is_a_value_that_occurred(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 50) is None
    assert percentile([7.0], 99) == 7.0
