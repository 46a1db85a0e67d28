from typing import Any

import pytest

from streams.joiner import Example
from streams.microbatch import MicroBatcher


def example(number: int) -> Example:
    return Example(f"e-{number}", "u", None, "i", number, "click", "home", None, 0)


def filled(batcher: MicroBatcher, count: int, *, size_bytes: int = 1, now: float = 0.0) -> MicroBatcher:
    for number in range(count):
        batcher.add(example(number), size_bytes=size_bytes, now=now)
    return batcher


def test_closes_at_the_count() -> None:
    batcher = filled(MicroBatcher(max_events=3), 2)
    assert not batcher.ready(0.0)
    batcher.add(example(2), size_bytes=1, now=0.0)
    assert batcher.ready(0.0)
    assert batcher.take() == [example(0), example(1), example(2)]
    assert not batcher.ready(99.0)


def test_closes_at_the_age_of_its_first_example() -> None:
    batcher = MicroBatcher(max_age_seconds=1.0)
    batcher.add(example(0), size_bytes=1, now=10.0)
    batcher.add(example(1), size_bytes=1, now=10.9)
    assert not batcher.ready(10.99)
    assert batcher.ready(11.0)


def test_closes_at_the_weight() -> None:
    assert not filled(MicroBatcher(max_bytes=100), 2, size_bytes=49).ready(0.0)
    assert filled(MicroBatcher(max_bytes=100), 2, size_bytes=50).ready(0.0)


def test_what_is_beyond_stays_with_its_own_age() -> None:
    batcher = filled(MicroBatcher(max_events=2, max_age_seconds=1.0), 2)
    batcher.add(example(2), size_bytes=1, now=0.5)
    assert batcher.take() == [example(0), example(1)]
    assert len(batcher) == 1
    assert not batcher.ready(1.4)
    assert batcher.ready(1.5)


def test_one_heavy_example_is_a_batch_of_its_own() -> None:
    batcher = MicroBatcher(max_bytes=100)
    for number, size_bytes in enumerate((10, 500, 10)):
        batcher.add(example(number), size_bytes=size_bytes, now=0.0)
    assert [batcher.take(), batcher.take(), batcher.take()] == [[example(0)], [example(1)], [example(2)]]


def test_nothing_is_never_ready() -> None:
    assert not MicroBatcher().ready(1e9)
    assert MicroBatcher().take() == []


@pytest.mark.parametrize("wrong", [{"max_events": 0}, {"max_bytes": 0}, {"max_age_seconds": -1.0}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        MicroBatcher(**wrong)
