"""Where partitions are read: the next offset of each, the log that it belongs to, and where a log had gaps."""

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
    """A place in the log that could not be read as asked.

    Attributes:
        wanted: The offset that was to be read next.
        resumed: The offset from which it goes on.
        log_start: The first offset of the log.
        log_end: Its end.
        cause: `retention`: the records between `wanted` and `resumed` were deleted before they were read.
            `truncation`: the log is the same and shorter than it was, as after an unclean election.
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
        """How many offsets were deleted before they were read."""
        return self.resumed - self.wanted if self.cause == "retention" else 0


class LogPositions:
    """The partitions of some topics that one rank reads, and their positions.

    Args:
        topics: Names of the topics, in the order in which they are read.
        rank: Which of the readers this one is.
        world_size: How many readers share the partitions.
        start: The next offset of each partition, or one end of the log.
        topic_ids: The logs that `start` belongs to.
        problems: Takes what cannot be read.

    Attributes:
        offsets: The next offset of every known partition.
        ids: The identity of the logs that `offsets` belongs to, by topic, where the broker tells it.
        missing: The topics that do not exist, as of the last look.
        gaps: Where a log did not have what was to be read next, in the order found.
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
        # Partitions that begin where `start` says; a topic's others came to be later, and begin at their first record.
        self._from_start: dict[str, frozenset[int]] = {topic: frozenset() for topic, _ in self.offsets}

    def recreated(self, metadata: Metadata) -> set[str]:
        """Return the topics that are another log than the one their offsets belong to."""
        return {topic for topic in self._topics if is_other_log(self.ids.get(topic), metadata[topic].identity)}

    def readable(self, metadata: Metadata) -> list[TopicPartition]:
        """Return the partitions that are this rank's and can be read; note what cannot."""
        return [at for topic in self._topics for at in self._readable(topic, metadata)]

    def _readable(self, topic: str, metadata: Metadata) -> list[TopicPartition]:
        found = metadata[topic]
        if found.error is not None and not found.partitions:
            if not found.exists:
                self.missing.add(topic)
                self._from_start.setdefault(topic, frozenset())
            was_read = any(name == topic for name, _ in self.offsets)
            self._problems.note(topic, read_problems.absent(topic, found, was_read=was_read))
            return []
        self.missing.discard(topic)
        self._problems.clear_seen(topic)
        self._from_start.setdefault(topic, found.partitions)
        mine = [number for number in sorted(found.partitions) if number % self._world_size == self._rank]
        for number in mine:
            if number in found.leaderless:
                self._problems.note(partition_name(topic, number), read_problems.leaderless(topic, number))
            else:
                self._problems.clear_seen(partition_name(topic, number))
        return [
            (topic, number)
            for number in mine
            if number not in found.leaderless and not self._problems.holds_back(topic, number)
        ]

    def place(self, starts: Offsets, ends: Offsets) -> None:
        """Find the next offset of partitions that are to be read now.

        Args:
            starts: Their first offsets.
            ends: Their ends.
        """
        for at in starts:
            wanted = self.offsets.get(at, self._first_offset(at, starts, ends))
            self.move(at, wanted, wanted, starts, ends)

    def move(self, at: TopicPartition, wanted: int, target: int, starts: Offsets, ends: Offsets) -> None:
        """Move to the offset nearest to a target that the log has; if that is not what was wanted, note the gap."""
        resumed = min(max(target, starts[at]), ends[at])
        if resumed != wanted:
            cause: Literal["retention", "truncation"] = "retention" if resumed > wanted else "truncation"
            self._add(Gap(*at, wanted, resumed, starts[at], ends[at], cause))
        self.offsets[at] = resumed

    def forget(self, topic: str, starts: Offsets, ends: Offsets) -> None:
        """Forget the log that a topic was before it was recreated; the new one is read from its first record."""
        for at in [at for at in self.offsets if at[0] == topic]:
            start, end = starts.get(at, 0), ends.get(at, 0)
            self._add(Gap(*at, wanted=self.offsets.pop(at), resumed=0, log_start=start, log_end=end, cause="recreated"))
        self._from_start[topic] = frozenset()
        self.ids.pop(topic, None)

    def adopt_ids(self, metadata: Metadata) -> None:
        """Take the identity of topics whose logs were unknown."""
        for topic in self._topics:
            identity = metadata[topic].identity
            if identity is not None and metadata[topic].partitions:
                self.ids.setdefault(topic, identity)

    def _first_offset(self, at: TopicPartition, starts: Offsets, ends: Offsets) -> int:
        """Where a partition without a position begins: one that came to be while its topic was read, at 0."""
        topic, number = at
        if number not in self._from_start[topic]:
            return 0
        return ends[at] if self._from_latest else starts[at]

    def _add(self, gap: Gap) -> None:
        self.gaps.append(gap)
        log.warning("log_gap", **asdict(gap), missed=gap.missed)


def _of_topics(offsets: Offsets, topics: Collection[str]) -> Offsets:
    return {at: offset for at, offset in offsets.items() if at[0] in topics}
