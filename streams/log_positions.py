"""Read positions: the next offset of each partition, the identity of its log, and the gaps that were found."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import structlog

from streams import read_problems
from streams.offsets import Offsets, TopicPartition, partition_name
from streams.read_problems import ReadProblems
from streams.topic_metadata import Metadata, is_other_log

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gap:
    """A place where the log does not have the next offset to read.

    Attributes:
        wanted: the offset that was to be read next.
        resumed: the offset from which reading continues.
        log_start: the first offset of the log.
        log_end: the end of the log.
        cause: `retention`: the records between `wanted` and `resumed` were deleted before they were read.
            `truncation`: the log is the same but shorter than it was, as after an unclean leader election.
            `recreated`: the topic was deleted and created again; the new log is read from its start.
    """

    topic: str
    partition: int
    wanted: int
    resumed: int
    log_start: int
    log_end: int
    cause: Literal["retention", "truncation", "recreated"]

    @property
    def missed(self) -> int:
        """The number of offsets that were deleted before they were read."""
        return self.resumed - self.wanted if self.cause == "retention" else 0


class LogPositions:
    """The partitions that one rank reads, and their positions.

    Args:
        topics: the names of the topics, in the order in which they are read.
        rank: the number of this reader, from 0.
        world_size: the number of readers that share the partitions.
        start: the next offset of each partition, or one end of the log.
        topic_ids: the logs that `start` belongs to.
        problems: receives what cannot be read.

    Attributes:
        offsets: the next offset of every known partition.
        ids: the identity of the logs that `offsets` belongs to, by topic, where the broker reports it.
        missing: the topics that do not exist according to the latest metadata.
        gaps: the places where a log did not have the next offset, in the order in which they were found.
    """

    def __init__(
        self,
        topics: Sequence[str],
        *,
        rank: int,
        world_size: int,
        start: Offsets | Literal["earliest", "latest"],
        topic_ids: dict[str, str],
        problems: ReadProblems,
    ) -> None:
        self._topics, self._rank, self._world_size = topics, rank, world_size
        self._problems = problems
        self._from_latest = start == "latest"
        self.offsets: Offsets = _of_topics(start, topics) if isinstance(start, dict) else {}
        self.ids = {topic: id_ for topic, id_ in topic_ids.items() if topic in topics}
        self.missing: set[str] = set()
        self.gaps: list[Gap] = []
        # The partitions that begin at `start`; a topic's others were added later and begin at their first record.
        self._from_start: dict[str, frozenset[int]] = {topic: frozenset() for topic, _ in self.offsets}

    def recreated(self, metadata: Metadata) -> set[str]:
        """Return the topics whose log is not the one that their offsets belong to."""
        return {topic for topic in self._topics if is_other_log(self.ids.get(topic), metadata[topic].identity)}

    def readable(self, metadata: Metadata) -> list[TopicPartition]:
        """Return the partitions of this rank that can be read; note those that cannot."""
        return [at for topic in self._topics for at in self._readable(topic, metadata)]

    def _readable(self, topic: str, metadata: Metadata) -> list[TopicPartition]:
        described = metadata[topic]
        if described.error is not None and not described.partitions:
            if not described.exists:
                self.missing.add(topic)
                self._from_start.setdefault(topic, frozenset())
            was_read = any(name == topic for name, _ in self.offsets)
            self._problems.note(topic, read_problems.absent(topic, described, was_read=was_read))
            return []
        self.missing.discard(topic)
        self._problems.clear_seen(topic)
        self._from_start.setdefault(topic, described.partitions)
        numbers = [number for number in sorted(described.partitions) if number % self._world_size == self._rank]
        for number in numbers:
            if number in described.leaderless:
                self._problems.note(partition_name(topic, number), read_problems.leaderless(topic, number))
            else:
                self._problems.clear_seen(partition_name(topic, number))
        return [
            (topic, number)
            for number in numbers
            if number not in described.leaderless and not self._problems.is_suspended(topic, number)
        ]

    def add(self, starts: Offsets, ends: Offsets) -> None:
        """Determine the next offset of partitions that are to be read from now on.

        Args:
            starts: the first offset of each partition.
            ends: the end of each partition.
        """
        for at in starts:
            wanted = self.offsets.get(at, self._first_offset(at, starts, ends))
            self.move(at, wanted, wanted, starts, ends)

    def move(self, at: TopicPartition, wanted: int, target: int, starts: Offsets, ends: Offsets) -> None:
        """Move to the offset nearest to `target` that the log has; note a gap if that is not `wanted`."""
        resumed = min(max(target, starts[at]), ends[at])
        if resumed != wanted:
            cause: Literal["retention", "truncation"] = "retention" if resumed > wanted else "truncation"
            self._add_gap(Gap(*at, wanted, resumed, starts[at], ends[at], cause))
        self.offsets[at] = resumed

    def forget(self, topic: str, starts: Offsets, ends: Offsets) -> None:
        """Forget the previous log of a recreated topic; the new one is read from its first record."""
        for at in [at for at in self.offsets if at[0] == topic]:
            start, end = starts.get(at, 0), ends.get(at, 0)
            self._add_gap(
                Gap(*at, wanted=self.offsets.pop(at), resumed=0, log_start=start, log_end=end, cause="recreated")
            )
        self._from_start[topic] = frozenset()
        self.ids.pop(topic, None)

    def adopt_ids(self, metadata: Metadata) -> None:
        """Record the identity of topics whose logs were unknown."""
        for topic in self._topics:
            identity = metadata[topic].identity
            if identity is not None and metadata[topic].partitions:
                self.ids.setdefault(topic, identity)

    def _first_offset(self, at: TopicPartition, starts: Offsets, ends: Offsets) -> int:
        """Return where a partition without a position begins: at 0 if it was added while its topic was read."""
        topic, number = at
        if number not in self._from_start[topic]:
            return 0
        return ends[at] if self._from_latest else starts[at]

    def _add_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        log.warning("log_gap", **asdict(gap), missed=gap.missed)


def _of_topics(offsets: Offsets, topics: Collection[str]) -> Offsets:
    return {at: offset for at, offset in offsets.items() if at[0] in topics}
