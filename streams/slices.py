"""Slices of the log: stretches of records in a reproducible order that can be read again.

A slice is a set of offsets by partition. Its records are merged by their timestamps, keeping the order of each
partition, so that the same offsets yield the same records in the same order, however they arrive. The end of a slice is
not in the log: it depends on what had arrived when the slice was full or old enough. To repeat a slice, keep its `ends`
and pass them to `repeat`.

A log can change while it is read. Added partitions join the slices. Records that were deleted before they were read are
counted in the slice that passes over them. Records that were read from a log before it was recreated or truncated are
returned before anything is read from the new one, so that all offsets of a slice belong to one log.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice

import structlog

from streams.consumer import PartitionConsumer
from streams.log_positions import Gap
from streams.offsets import Offsets, TopicPartition
from streams.record import Record

log = structlog.get_logger(__name__)

MAX_RECORDS = 500  # of one poll
# The share of `max_age_seconds` for which a slice collects records however old they are: producers set timestamps.
_MIN_AGE_SHARE = 0.2
_LOOK_BEHIND = 64  # following records whose times bound the time of a record from the future


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the log.

    Attributes:
        records: the records of the slice, in order.
        ends: the next offset of every partition after them.
        missed: by partition, the number of offsets whose records were deleted before they were read.
        topic_ids: the logs that the offsets belong to, by topic, where the broker reports it.
    """

    records: list[Record]
    ends: Offsets
    missed: Offsets = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)


class SliceReader:
    """A reader that divides the records of a consumer into slices.

    A slice is due once it has `max_events` records of the counted topics, or `max_bytes`, or its first record has
    waited `max_age_seconds`: in memory or, at the end of the log, in the log while nobody read. While a partition has
    records that have not arrived, newer ones of the others wait, so that a long backlog is read in the order in which
    it was written.

    Args:
        consumer: the consumer to read from; only this reader polls it.
        topics: the topics in the order in which records of the same millisecond are merged.
        counted: the topics whose records count towards `max_events`.
        max_events: the largest number of counted records in a slice.
        max_bytes: the size after which a slice ends.
        max_age_seconds: the longest time that the first record of a slice waits for others.
    """

    def __init__(
        self,
        consumer: PartitionConsumer,
        *,
        topics: Collection[str],
        counted: Collection[str],
        max_events: int,
        max_bytes: int,
        max_age_seconds: float,
    ) -> None:
        self._consumer = consumer
        self._counted = frozenset(counted)
        self._max_events, self._max_bytes, self._max_age_seconds = max_events, max_bytes, max_age_seconds
        self._ranks = {topic: place for place, topic in enumerate(topics)}
        self.ends: Offsets = {}
        self._topic_ids: dict[str, str] = {}
        self._queues: dict[TopicPartition, deque[Record]] = {}
        self._gaps: list[Gap] = []  # of deleted records, not passed yet
        self._gaps_seen = 0
        # Partition and offset of records dated later than they were read -> when they were read, epoch ms.
        self._ahead: dict[tuple[TopicPartition, int], int] = {}
        self._events = self._bytes = 0  # waiting
        self._since: float | None = None  # monotonic seconds, of the first record that waits
        self._follow()

    @property
    def waiting(self) -> dict[TopicPartition, int]:
        """The number of records that were read and not returned yet, by partition."""
        return {at: len(queue) for at, queue in self._queues.items()}

    def poll(self, timeout_seconds: float) -> Slice | None:
        """Read the available records; return the next slice once it is due.

        Args:
            timeout_seconds: how long to wait for records.
        """
        if not self._follow():
            return self._cut(patient=False)
        if not self._is_full() or self._is_starved():
            self._consumer.pause([at for at, queue in self._queues.items() if len(queue) > 2 * MAX_RECORDS])
            self.read(timeout_seconds)
        if self._since is None:
            return self._cut(patient=False) if self._has_missed() else None
        waited = (time.monotonic() - self._since) / self._max_age_seconds
        old, gathered = waited >= 1, waited >= _MIN_AGE_SHARE
        due = old or (self._is_full() and not self._is_starved()) or (gathered and self._has_waited_in_the_log())
        return self._cut(patient=not old) if due else None

    def flush(self) -> Slice | None:
        """Return the waiting records as a last slice; no more are read."""
        self._follow()
        return self._cut(patient=False) if self._since is not None or self._has_missed() else None

    def repeat(self, ends: Offsets, timeout_seconds: float) -> Slice | None:
        """Read on; return the slice that ends at `ends` once all its records have arrived.

        Args:
            ends: the ends of the slice to repeat.
            timeout_seconds: how long to wait for records.
        """
        missing = self._missing(ends)
        if missing:
            self._consumer.pause(self._queues.keys() - missing)
            self.read(timeout_seconds)
            missing = self._missing(ends)
        if missing:
            return None
        records = self._merge(lambda at: self._queues[at][0].offset < ends.get(at, 0))
        return self._slice_of(self._in_timestamp_order(records) if self._ahead else records, ends)

    def _missing(self, ends: Offsets) -> set[TopicPartition]:
        positions = self._consumer.positions()
        return {at for at, end in ends.items() if at[0] in self._ranks and positions.get(at, -1) < end}

    def _follow(self) -> bool:
        """Follow changes of the logs. Returns False while records wait that must be returned first."""
        gaps = self._consumer.gaps
        while self._gaps_seen < len(gaps):
            gap = gaps[self._gaps_seen]
            at = gap.topic, gap.partition
            if gap.cause == "retention":
                self._gaps.append(gap)
                self.ends[at] = min(self.ends.get(at, gap.wanted), gap.wanted)
            elif self._queues.get(at):
                return False
            elif gap.cause == "truncation":
                self.ends[at] = gap.resumed
            else:
                self._gaps = [other for other in self._gaps if (other.topic, other.partition) != at]
                self.ends.pop(at, None)
                self._queues.pop(at, None)
                self._ahead = {place: ms for place, ms in self._ahead.items() if place[0] != at}
            self._gaps_seen += 1
        for at, position in self._consumer.positions().items():
            if at not in self._queues:
                self._queues[at] = deque()
                self.ends.setdefault(at, position)
        self._topic_ids = self._consumer.topic_ids()
        return True

    def _has_missed(self) -> bool:
        """Return whether deleted records come next, with no readable record before them."""
        return any(self.ends[gap.topic, gap.partition] >= gap.wanted for gap in self._gaps)

    def _is_full(self) -> bool:
        return self._events >= self._max_events or self._bytes >= self._max_bytes

    def read(self, timeout_seconds: float) -> None:
        """Read the available records and keep them for later slices.

        Args:
            timeout_seconds: how long to wait for records.
        """
        if not self._follow():
            return
        records = self._consumer.poll(timeout_seconds, MAX_RECORDS)
        now_ms = time.time_ns() // 1_000_000
        for record in records:
            at = record.topic, record.partition
            self._queues[at].append(record)
            if record.timestamp_ms > now_ms:
                self._ahead[at, record.offset] = now_ms
            self._events += record.topic in self._counted
            self._bytes += _size_bytes(record)
            if self._since is None:
                self._since = time.monotonic()

    def _is_starved(self) -> bool:
        return any(not queue and self._consumer.is_behind(at) for at, queue in self._queues.items())

    def _has_waited_in_the_log(self) -> bool:
        """Return whether the end of the log was reached and the first waiting record is old by its timestamp."""
        if any(self._consumer.is_behind(at) for at in self._queues):
            return False
        oldest_ms = min(self._due_ms(queue[0]) for queue in self._queues.values() if queue)
        return time.time() - oldest_ms / 1_000 >= self._max_age_seconds

    def _cut(self, *, patient: bool) -> Slice:
        """Return the next slice; shorter if records of a slower partition have yet to arrive.

        Args:
            patient: whether to stop where a slower partition may have older records.
        """
        events = size_bytes = 0

        def continues(record: Record) -> bool:
            nonlocal events, size_bytes
            events += record.topic in self._counted
            size_bytes += _size_bytes(record)
            at = record.topic, record.partition
            starved = patient and not self._queues[at] and self._consumer.is_behind(at)
            return events < self._max_events and size_bytes < self._max_bytes and not starved

        records = self._merge(lambda _: True, continues)
        if self._ahead:
            records = self._in_timestamp_order(records)
        ends = {(r.topic, r.partition): r.offset + 1 for r in records}
        for gap in self._gaps:  # in the order of their offsets
            at = gap.topic, gap.partition
            end = ends.get(at, self.ends[at])
            if end >= gap.wanted:
                ends[at] = max(end, gap.resumed)
        return self._slice_of(records, ends)

    def _merge(
        self, belongs: Callable[[TopicPartition], bool], continues: Callable[[Record], bool] = lambda _: True
    ) -> list[Record]:
        """Remove records from the queues and return them, always the earliest of the partitions' next records.

        Args:
            belongs: returns whether the next record of a partition is to be taken.
            continues: returns whether to take another record after this one.
        """
        heads = [self._head(at) for at, queue in self._queues.items() if queue and belongs(at)]
        heapq.heapify(heads)
        records: list[Record] = []
        while heads:
            at = heads[0][2]
            records.append(self._queues[at].popleft())
            if self._queues[at] and belongs(at):
                heapq.heapreplace(heads, self._head(at))
            else:
                heapq.heappop(heads)
            if not continues(records[-1]):
                break
        return records

    def _head(self, at: TopicPartition) -> tuple[int, tuple[int, int], TopicPartition]:
        return self._due_ms(self._queues[at][0]), self._rank(at), at

    def _rank(self, at: TopicPartition) -> tuple[int, int]:
        return self._ranks[at[0]], at[1]

    def _due_ms(self, record: Record) -> int:
        """Return the time by which a record is merged.

        It is the record's own time. A record that is dated later than it was read would block its partition as long as
        the others are busy, so it counts as of when it was read, or of the earliest of the records behind it.
        """
        at = record.topic, record.partition
        read_ms = self._ahead.get((at, record.offset))
        if read_ms is None:
            return record.timestamp_ms
        return min(read_ms, *(behind.timestamp_ms for behind in islice(self._queues[at], _LOOK_BEHIND)))

    def _in_timestamp_order(self, records: list[Record]) -> list[Record]:
        """Merge the records of a slice by their timestamps only, which a repeat has too."""
        parts: dict[TopicPartition, list[Record]] = {}
        for record in records:
            parts.setdefault((record.topic, record.partition), []).append(record)

        def turn(record: Record) -> tuple[int, tuple[int, int]]:
            return record.timestamp_ms, self._rank((record.topic, record.partition))

        return list(heapq.merge(*parts.values(), key=turn))

    def _slice_of(self, records: list[Record], ends: Offsets) -> Slice:
        missed = self._missed(ends)
        self.ends |= ends
        self._gaps = [gap for gap in self._gaps if self.ends[gap.topic, gap.partition] < gap.resumed]
        self._events -= sum(record.topic in self._counted for record in records)
        self._bytes -= sum(_size_bytes(record) for record in records)
        if self._ahead:
            self._ahead = {place: ms for place, ms in self._ahead.items() if place[1] >= self.ends[place[0]]}
        self._since = time.monotonic() if any(self._queues.values()) else None
        return Slice(records, dict(self.ends), missed, dict(self._topic_ids))

    def _missed(self, ends: Offsets) -> Offsets:
        """Return the number of offsets of deleted records between the last slice's ends and these, by partition."""
        missed: Offsets = {}
        for gap in self._gaps:
            at = gap.topic, gap.partition
            count = min(gap.resumed, ends.get(at, 0)) - max(gap.wanted, self.ends[at])
            if count > 0:
                missed[at] = missed.get(at, 0) + count
        return missed


def _size_bytes(record: Record) -> int:
    return len(record.value or b"")
