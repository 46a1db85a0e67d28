"""The same ends yield the same records in the same order, however they arrive."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.consumer import PartitionConsumer
from streams.log_positions import Gap
from streams.offsets import Offsets, TopicPartition
from streams.record import Record
from streams.slices import Slice, SliceReader

TOPICS = ["items", "clicks"]
PARTITIONS = [(topic, number) for topic in TOPICS for number in range(2)]


class Arrivals:
    """A consumer that receives records in the order and portions of a schedule."""

    def __init__(self, log: dict[TopicPartition, list[Record]], order: Sequence[tuple[int, int]]) -> None:
        self._log, self._order = log, list(order)
        self._read = dict.fromkeys(PARTITIONS, 0)
        self._held: set[TopicPartition] = set()
        self.gaps: list[Gap] = []

    def poll(self, timeout_seconds: float = 0.0, max_records: int = 500) -> list[Record]:
        del timeout_seconds, max_records
        partition, count = self._order.pop(0) if self._order else (0, 1_000)
        at = PARTITIONS[partition]
        if not self._order:  # then all that is left, whatever it is
            left = (one for one in PARTITIONS if self._read[one] < len(self._log[one]) and one not in self._held)
            at = next(left, at)
        first = self._read[at]
        if at in self._held:
            return []
        self._read[at] = min(len(self._log[at]), first + count)
        return self._log[at][first : self._read[at]]

    def positions(self) -> Offsets:
        return dict(self._read)

    def topic_ids(self) -> dict[str, str]:
        return {}

    def is_behind(self, at: TopicPartition) -> bool:
        return self._read[at] < len(self._log[at])

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._held = set(partitions)


def log_of(times: list[list[int]]) -> dict[TopicPartition, list[Record]]:
    return {
        at: [Record(*at, offset, None, b"x" * 10, time) for offset, time in enumerate(row)]
        for at, row in zip(PARTITIONS, times, strict=True)
    }


def reader(consumer: Arrivals, **limits: Any) -> SliceReader:
    limits = {"max_events": 5, "max_bytes": 150, "max_age_seconds": 1e9} | limits
    return SliceReader(cast(PartitionConsumer, consumer), topics=TOPICS, counted=["clicks"], **limits)


def read_all(slices: SliceReader, polls: int) -> list[Slice]:
    found = [slice_ for _ in range(polls) if (slice_ := slices.poll(0.0)) is not None]
    while (slice_ := slices.flush()) is not None:
        found.append(slice_)
    return found


LOGS = st.lists(st.lists(st.integers(0, 30), max_size=20), min_size=4, max_size=4).map(log_of)
ORDERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30)


@given(LOGS, ORDERS, ORDERS)
def test_slices_are_repeated_exactly(
    log: dict[TopicPartition, list[Record]], order: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    found = read_all(reader(Arrivals(log, order)), 100)
    again = reader(Arrivals(log, other), max_events=1)
    for slice_ in found:
        repeated = None
        while repeated is None:
            repeated = again.repeat(slice_.ends, 0.0)
        assert repeated == slice_
    for at, records in log.items():  # each record once, in its partition's order
        assert [r for slice_ in found for r in slice_.records if (r.topic, r.partition) == at] == records


@given(LOGS, ORDERS, ORDERS)
def test_a_backlog_comes_in_the_order_in_which_it_was_written(
    log: dict[TopicPartition, list[Record]], order: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """If the whole log has arrived and times rise within each partition, slices contain the earliest records of all."""
    for records in log.values():
        times = sorted(record.timestamp_ms for record in records)
        records[:] = [replace(record, timestamp_ms=time) for record, time in zip(records, times, strict=True)]
    for one in (order, other):
        found = [r for slice_ in read_all(reader(Arrivals(log, one)), 200) for r in slice_.records]
        whole = sorted(found, key=lambda r: (r.timestamp_ms, TOPICS.index(r.topic), r.partition, r.offset))
        assert found == whole


@given(LOGS)
def test_limits_are_kept(log: dict[TopicPartition, list[Record]]) -> None:
    for slice_ in read_all(reader(Arrivals(log, [])), 100):
        assert sum(record.topic == "clicks" for record in slice_.records) <= 5
        assert len(slice_.records) <= 15


@given(st.integers(1, 400), st.integers(1, 500))
def test_more_records_of_one_partition_than_are_held_at_once(first: int, then: int) -> None:
    """A slice of many records of one partition can be repeated, however they arrive."""
    log = log_of([[1] * 3_000, [2] * 1_500, [], [3] * 10])
    live = reader(Arrivals(log, []), max_events=10**6, max_bytes=10**9)
    for _ in range(20):
        live.read(0.0)
    whole = live.flush()
    assert whole is not None
    assert len(whole.records) == 4_510
    again = reader(Arrivals(log, [(0, first), (1, then)] * 8))
    repeated = None
    for _ in range(200):
        repeated = repeated or again.repeat(whole.ends, 0.0)
    assert repeated == whole


def test_a_reader_does_not_run_ahead_of_what_is_taken() -> None:
    log = log_of([[1] * 9_000, [1] * 10, [], [1] * 10])
    consumer = Arrivals(log, [(0, 500)] * 200)
    live = reader(consumer, max_events=10**6, max_bytes=10**9)
    for _ in range(30):
        live.poll(0.0)
    assert live.waiting["items", 0] == 1_500


def with_age(milliseconds: float, *, order: Sequence[tuple[int, int]], polls: int) -> list[int]:
    """Return the sizes of the slices of two clicks that were written some time ago, with a maximum age of a second."""
    written = int(time.time() * 1_000 - milliseconds)
    slices = reader(Arrivals(log_of([[], [], [written, written], []]), order), max_events=9, max_age_seconds=1.0)
    return [len(slice_.records) for _ in range(polls) if (slice_ := slices.poll(0.0)) is not None]


def test_what_has_waited_in_the_log_waits_no_longer_than_it_takes_to_gather_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.slices._MIN_AGE_SHARE", 0.0)
    assert with_age(1_500, order=[(2, 9)], polls=1) == [2]
    assert with_age(100, order=[(2, 9)], polls=1) == []
    assert (
        with_age(1_500, order=[(2, 1), (0, 1), (0, 1)], polls=2) == []
    )  # of the clicks there is one that has not been read


def test_however_old_records_say_they_are_they_are_gathered_for_a_while() -> None:
    assert with_age(10_000_000, order=[(2, 9)], polls=1) == []


HOUR_MS = 3_600_000


def test_a_record_dated_ahead_holds_back_neither_itself_nor_its_partition_and_is_repeated_in_its_place() -> None:
    now_ms = time.time_ns() // 1_000_000
    busy = [now_ms - 500 + 2 * n for n in range(100)]
    log = log_of([[], [], [now_ms - 400, now_ms + HOUR_MS, now_ms - 398, now_ms - 397], busy])
    order = [(2, 4), (3, 100)]
    live = reader(Arrivals(log, order), max_events=20)
    found = [slice_ for _ in range(5) if (slice_ := live.poll(0.0)) is not None]
    taken = [record for slice_ in found for record in slice_.records if record.partition == 0]
    assert taken == log["clicks", 0], "all have had their turn among records of their own time"
    assert len(found) > 2
    again = reader(Arrivals(log, [(3, 30), (2, 1), (3, 70), (2, 3)]), max_events=1)
    for slice_ in found:
        repeated = None
        while repeated is None:
            repeated = again.repeat(slice_.ends, 0.0)
        assert repeated == slice_


def test_a_slice_of_one_record_dated_ahead_is_due_after_its_age() -> None:
    ahead = int(time.time() * 1_000) + HOUR_MS
    live = reader(Arrivals(log_of([[], [], [ahead], []]), [(2, 1)] * 3), max_age_seconds=0.05)
    live.poll(0.0)
    time.sleep(0.06)
    due = live.poll(0.0)
    assert due is not None
    assert [record.timestamp_ms for record in due.records] == [ahead]
