"""The log in slices: so many records, in an order and with an end that can be repeated.

A slice is a set of offsets by partition. Its records are merged by their timestamps, each partition's own order
kept, so that the same offsets give the same records in the same order, however they arrive. What is not in the log is
where a slice ends: that depends on what had arrived when it was full or old enough. Whoever wants to repeat a slice
keeps its `ends`, and hands them to `repeat`.

A log can change while it is read. Partitions that are added join the slices as they come. Records that were deleted
before they were read are counted in the slice that passes over them. What was read of a log that has been recreated
since, or cut, is given out before anything is read of the new one, so that all offsets of a slice belong to one log.
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
# Of its longest wait a slice gathers records so long, however old they are: timestamps are for producers to set.
_GATHERED = 0.2
_LOOK_BEHIND = 64  # records whose times say when one that is dated ahead was written


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the log.

    Attributes:
        records: its records, in their order.
        ends: the next offset of every partition after them.
        missed: by partition, how many offsets it passes over whose records were deleted before they were read.
        topic_ids: the logs that the offsets belong to, by topic, where the broker tells it.
    """

    records: list[Record]
    ends: Offsets
    missed: Offsets = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)


class SliceReader:
    """Cuts what a consumer reads into slices.

    A slice is due once it holds `max_events` records of the counted topics, or `max_bytes`, or its first record has
    waited `max_age_seconds`: here or, where the end of the log is reached, in the log while nobody read. While a
    partition has records that have not arrived, younger ones of the others wait, so that a long backlog comes in the
    order in which it was written.

    Args:
        consumer: where records come from; this object alone polls it.
        topics: in which order records of the same millisecond come.
        counted: topics whose records count.
        max_events: counted records of a slice at most.
        max_bytes: bytes after which a slice ends.
        max_age_seconds: how long the first record of a slice waits for others.
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
        """Records read and not yet given out, by partition."""
        return {at: len(queue) for at, queue in self._queues.items()}

    def poll(self, timeout_seconds: float) -> Slice | None:
        """Read what is there; the next slice once it is due."""
        if not self._follow():
            return self._cut(patient=False)
        if not self._is_full() or self._is_starved():
            self._consumer.pause([at for at, queue in self._queues.items() if len(queue) > 2 * MAX_RECORDS])
            self.read(timeout_seconds)
        if self._since is None:
            return self._cut(patient=False) if self._has_missed() else None
        waited = (time.monotonic() - self._since) / self._max_age_seconds
        old, gathered = waited >= 1, waited >= _GATHERED
        due = old or (self._is_full() and not self._is_starved()) or (gathered and self._has_waited_in_the_log())
        return self._cut(patient=not old) if due else None

    def flush(self) -> Slice | None:
        """What waits, as it stands: no more is to come."""
        self._follow()
        return self._cut(patient=False) if self._since is not None or self._has_missed() else None

    def repeat(self, ends: Offsets, timeout_seconds: float) -> Slice | None:
        """Read on; the slice that ends at `ends` once all of it is there."""
        missing = self._missing(ends)
        if missing:
            self._consumer.pause(self._queues.keys() - missing)
            self.read(timeout_seconds)
            missing = self._missing(ends)
        if missing:
            return None
        records = self._merge(lambda at: self._queues[at][0].offset < ends.get(at, 0))
        return self._taken(self._in_order(records) if self._ahead else records, ends)

    def _missing(self, ends: Offsets) -> set[TopicPartition]:
        positions = self._consumer.positions()
        return {at for at, end in ends.items() if at[0] in self._ranks and positions.get(at, -1) < end}

    def _follow(self) -> bool:
        """Take in how the logs have changed; False while records wait that must be given out before."""
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
        """Whether deleted records come next, with nothing before them that could be read."""
        return any(self.ends[gap.topic, gap.partition] >= gap.wanted for gap in self._gaps)

    def _is_full(self) -> bool:
        return self._events >= self._max_events or self._bytes >= self._max_bytes

    def read(self, timeout_seconds: float) -> None:
        """Read what is there, and keep it for the slices to come."""
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
        """Whether all that is known of was read, and the first of it is old by its timestamp."""
        if any(self._consumer.is_behind(at) for at in self._queues):
            return False
        oldest_ms = min(self._due_ms(queue[0]) for queue in self._queues.values() if queue)
        return time.time() - oldest_ms / 1_000 >= self._max_age_seconds

    def _cut(self, *, patient: bool) -> Slice:
        """The records due next; fewer where those of a slower partition have yet to arrive."""
        events = size_bytes = 0

        def goes_on(record: Record) -> bool:
            nonlocal events, size_bytes
            events += record.topic in self._counted
            size_bytes += _size_bytes(record)
            at = record.topic, record.partition
            starved = patient and not self._queues[at] and self._consumer.is_behind(at)
            return events < self._max_events and size_bytes < self._max_bytes and not starved

        records = self._merge(lambda _: True, goes_on)
        if self._ahead:
            records = self._in_order(records)
        ends = {(r.topic, r.partition): r.offset + 1 for r in records}
        for gap in self._gaps:  # in the order of their offsets
            at = gap.topic, gap.partition
            end = ends.get(at, self.ends[at])
            if end >= gap.wanted:
                ends[at] = max(end, gap.resumed)
        return self._taken(records, ends)

    def _merge(
        self, belongs: Callable[[TopicPartition], bool], goes_on: Callable[[Record], bool] = lambda _: True
    ) -> list[Record]:
        """Take records out, always the earliest of the partitions' next ones.

        Args:
            belongs: whether a partition's next record is to be taken.
            goes_on: whether there is to be another after this one.
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
            if not goes_on(records[-1]):
                break
        return records

    def _head(self, at: TopicPartition) -> tuple[int, tuple[int, int], TopicPartition]:
        return self._due_ms(self._queues[at][0]), self._rank(at), at

    def _rank(self, at: TopicPartition) -> tuple[int, int]:
        return self._ranks[at[0]], at[1]

    def _due_ms(self, record: Record) -> int:
        """Return the time by which a record has its turn.

        It is the record's own. One that was dated later than it was read would hold up its partition for as long as the
        others are busy, so it has its turn when it was read, or with the earliest of the next records behind it.
        """
        at = record.topic, record.partition
        read_ms = self._ahead.get((at, record.offset))
        if read_ms is None:
            return record.timestamp_ms
        return min(read_ms, *(behind.timestamp_ms for behind in islice(self._queues[at], _LOOK_BEHIND)))

    def _in_order(self, records: list[Record]) -> list[Record]:
        """Merge a slice's records by their timestamps alone, which a repeat has too."""
        parts: dict[TopicPartition, list[Record]] = {}
        for record in records:
            parts.setdefault((record.topic, record.partition), []).append(record)

        def turn(record: Record) -> tuple[int, tuple[int, int]]:
            return record.timestamp_ms, self._rank((record.topic, record.partition))

        return list(heapq.merge(*parts.values(), key=turn))

    def _taken(self, records: list[Record], ends: Offsets) -> Slice:
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
        """Return how many offsets of deleted records lie between the last slice's ends and these, by partition."""
        missed: Offsets = {}
        for gap in self._gaps:
            at = gap.topic, gap.partition
            count = min(gap.resumed, ends.get(at, 0)) - max(gap.wanted, self.ends[at])
            if count > 0:
                missed[at] = missed.get(at, 0) + count
        return missed


def _size_bytes(record: Record) -> int:
    return len(record.value or b"")
