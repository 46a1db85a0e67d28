"""Slices of logs that change while they are read: deleted records, added partitions, recreated topics."""

from collections.abc import Collection
from typing import cast

from streams.consumer import PartitionConsumer
from streams.log_positions import Gap
from streams.offsets import Offsets, TopicPartition
from streams.record import Record
from streams.slices import Slice, SliceReader

A, B, NEW = ("clicks", 0), ("items", 0), ("clicks", 1)


class Script:
    """A consumer that returns the records which a test sets."""

    def __init__(self, positions: Offsets) -> None:
        self._positions = dict(positions)
        self.gaps: list[Gap] = []
        self.ids = {"clicks": "c/1", "items": "c/2"}
        self.coming: list[list[Record]] = []

    def brings(self, at: TopicPartition, *offsets: int) -> None:
        self.coming.append([Record(*at, offset, None, b"x", offset) for offset in offsets])

    def jumps(self, at: TopicPartition, resumed: int, cause: str) -> None:
        wanted = self._positions.get(at, 0)
        self.gaps.append(Gap(*at, wanted, resumed, resumed, resumed, cause))  # type: ignore[arg-type]
        self._positions[at] = resumed

    def gains(self, at: TopicPartition, position: int = 0) -> None:
        self._positions[at] = position

    def poll(self, timeout_seconds: float = 0.0, max_records: int = 500) -> list[Record]:
        del timeout_seconds, max_records
        records = self.coming.pop(0) if self.coming else []
        self._positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
        return records

    def positions(self) -> Offsets:
        return dict(self._positions)

    def topic_ids(self) -> dict[str, str]:
        return dict(self.ids)

    def is_behind(self, at: TopicPartition) -> bool:
        del at
        return False

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        del partitions


def reader_of(script: Script, max_events: int = 2) -> SliceReader:
    return SliceReader(
        cast(PartitionConsumer, script),
        topics=["items", "clicks"],
        counted=["clicks"],
        max_events=max_events,
        max_bytes=10**9,
        max_age_seconds=1e9,
    )


def offsets(slice_: Slice | None) -> list[tuple[TopicPartition, int]]:
    assert slice_ is not None
    return [((record.topic, record.partition), record.offset) for record in slice_.records]


def test_deleted_records_are_counted_in_the_slice_that_passes_them() -> None:
    script = Script({A: 10, B: 0})
    reader = reader_of(script)
    script.brings(A, 10)
    assert reader.poll(0) is None
    script.jumps(A, 30, "retention")
    script.brings(A, 30, 31, 32)
    first, second = reader.poll(0), reader.poll(0)
    assert (offsets(first), offsets(second)) == ([(A, 10), (A, 30)], [(A, 31), (A, 32)])
    assert first is not None
    assert (first.missed, first.ends) == ({A: 19}, {A: 31, B: 0})
    assert second is not None
    assert second.missed == {}


def test_deleted_records_with_none_behind_them_are_counted_at_once_and_once() -> None:
    script = Script({A: 10, B: 0})
    script.jumps(A, 30, "retention")
    reader = reader_of(script)
    assert reader.ends[A] == 10
    assert reader.poll(0) == Slice([], {A: 30, B: 0}, {A: 20}, script.ids)
    assert reader.poll(0) is None
    assert reader.flush() is None


def test_records_before_deleted_ones_are_given_out_before() -> None:
    script = Script({A: 0, B: 0})
    reader = reader_of(script)
    script.brings(A, 0, 1, 2)
    assert offsets(reader.poll(0)) == [(A, 0), (A, 1)]
    script.jumps(A, 9, "retention")
    assert reader.poll(0) is None  # offset 2 waits for others, and what was deleted behind it waits with it
    rest = reader.flush()
    assert offsets(rest) == [(A, 2)]
    assert rest is not None
    assert (rest.ends[A], rest.missed) == (9, {A: 6})


def test_a_slice_with_deleted_records_is_repeated() -> None:
    script = Script({A: 10, B: 0})
    script.jumps(A, 30, "retention")
    script.brings(A, 30, 31, 32)
    reader = reader_of(script)
    assert reader.repeat({A: 31, B: 0}, 0) == Slice(
        [Record(*A, 30, None, b"x", 30)], {A: 31, B: 0}, {A: 20}, script.ids
    )


def test_records_deleted_since_a_slice_was_journaled_are_missed_in_it() -> None:
    """The slices ended at 20 and 40; the log now begins at 30."""
    script = Script({A: 10, B: 0})
    script.jumps(A, 30, "retention")
    script.brings(A, *range(30, 45))
    reader = reader_of(script)
    first, second = reader.repeat({A: 20, B: 0}, 0), reader.repeat({A: 40, B: 0}, 0)
    assert first is not None
    assert (first.records, first.missed) == ([], {A: 10})
    assert second is not None
    assert (len(second.records), second.missed) == (10, {A: 10})


def test_a_slice_over_a_partition_that_is_not_assigned_yet_waits_for_it() -> None:
    script = Script({A: 0, B: 0})
    reader = reader_of(script)
    ends = {A: 1, B: 0, NEW: 2}
    script.brings(A, 0)
    assert reader.repeat(ends, 0) is None
    assert reader.repeat(ends, 0) is None
    script.gains(NEW)
    script.brings(NEW, 0, 1, 2)
    repeated = reader.repeat(ends, 0)
    assert offsets(repeated) == [(A, 0), (NEW, 0), (NEW, 1)]
    assert repeated is not None
    assert repeated.ends == ends


def test_an_added_partition_is_in_the_ends_before_its_first_record() -> None:
    script = Script({A: 0, B: 0})
    reader = reader_of(script)
    script.gains(NEW)
    script.brings(A, 0, 1)
    slice_ = reader.poll(0)
    assert slice_ is not None
    assert slice_.ends == {A: 2, B: 0, NEW: 0}
    assert reader.waiting == {A: 0, B: 0, NEW: 0}


def test_what_was_read_of_a_recreated_topic_is_given_out_before_the_new_log_is_read() -> None:
    script = Script({A: 7, NEW: 3, B: 0})
    reader = reader_of(script)
    script.brings(A, 7)
    assert reader.poll(0) is None
    script.gaps += [Gap("clicks", number, wanted, 0, 0, 0, "recreated") for number, wanted in ((0, 8), (1, 3))]
    script._positions = {A: 0, B: 0}
    script.ids["clicks"] = "c/9"
    script.brings(A, 0, 1)
    old, new = reader.poll(0), reader.poll(0)
    assert old == Slice([Record(*A, 7, None, b"x", 7)], {A: 8, NEW: 3, B: 0}, {}, {"clicks": "c/1", "items": "c/2"})
    assert offsets(new) == [(A, 0), (A, 1)]
    assert new is not None
    assert (new.ends, new.topic_ids) == ({A: 2, B: 0}, {"clicks": "c/9", "items": "c/2"})


def test_a_shorter_log_is_gone_on_with_from_its_end() -> None:
    script = Script({A: 50, B: 0})
    reader = reader_of(script)
    script.jumps(A, 40, "truncation")
    script.brings(A, 40, 41)
    slice_ = reader.poll(0)
    assert offsets(slice_) == [(A, 40), (A, 41)]
    assert slice_ is not None
    assert (slice_.ends[A], slice_.missed) == (42, {})
