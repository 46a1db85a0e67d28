"""The partitions that a reader reads now: follows changes of the topics and repairs positions."""

from collections.abc import Collection, Sequence

import structlog
from kafka.errors import KafkaError, LogTruncationError, TopicAuthorizationFailedError

from streams import read_problems
from streams.connection import KafkaConnection, bootstrap_problem
from streams.errors import ConsumeError
from streams.log_client import LogClient, failed_partition
from streams.log_positions import LogPositions
from streams.offsets import Offsets, TopicPartition, partition_name
from streams.read_problems import ReadProblems
from streams.topic_metadata import Metadata, MetadataLookup

log = structlog.get_logger(__name__)

REFRESH_TIMEOUT_MS = 1_000  # of requests made while reading


class Assignment:
    """Assigned partitions of a client, kept in step with the topics' metadata.

    Args:
        connection: the brokers to read from.
        client: the client that reads the assigned partitions.
        positions: the offsets of the partitions; changed in place.
        problems: receives what cannot be read.
        topics: the names of the topics.

    Attributes:
        partitions: the assigned partitions, in the order of topics and partition numbers.
        has_changed: whether partitions or positions changed, other than by reading, since the caller reset it.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        client: LogClient,
        positions: LogPositions,
        problems: ReadProblems,
        topics: Collection[str],
    ) -> None:
        self._connection, self._client, self._positions, self._problems = connection, client, positions, problems
        self._topics = list(topics)
        self._lookup = MetadataLookup(topics)
        self._paused: set[TopicPartition] = set()
        self.partitions: list[TopicPartition] = []
        self.has_changed = False

    @property
    def paused(self) -> Collection[TopicPartition]:
        """The partitions that are not fetched until `pause` is called again."""
        return self._paused

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch nothing from these partitions, and resume all others."""
        paused = set(partitions)
        if paused != self._paused:
            self._client.resume([at for at in self._paused - paused if at in self.partitions])
            self._client.pause([at for at in paused - self._paused if at in self.partitions])
            self._paused = paused

    def current_offsets(self) -> Offsets:
        """Return the next offset of each assigned partition."""
        return {at: self._positions.offsets[at] for at in self.partitions}

    def read_up_to(self, at: TopicPartition) -> int:
        """Return the client's position, which also passes over the markers of transactions."""
        return max(self._client.position(at) or 0, self._positions.offsets[at])

    # ---- following the metadata

    def refresh_if_due(self) -> None:
        """Follow the topics' metadata when an answer has come; request them when it is time, without waiting.

        Raises:
            KafkaError: if the request failed.
            BrokerUnreachableError: if no broker answered.
        """
        topics = {topic for topic, _ in self.partitions}
        urgent = any(self._client.differs(topic, self._positions.ids.get(topic)) for topic in topics)
        metadata = self._lookup.poll(self._client.manager, urgent=urgent, problems=self._problems.any)
        if metadata is not None:
            self._follow(metadata, REFRESH_TIMEOUT_MS)

    def refresh(self, timeout_ms: int = REFRESH_TIMEOUT_MS) -> bool:
        """Request the topics' metadata, wait for them, and follow them. Returns True if the assignment changed.

        Raises:
            KafkaError: if the broker did not answer; nothing has changed then.
            BrokerUnreachableError: if no broker answered; nothing has changed then.
        """
        return self._follow(self._lookup.fetch(self._client.manager, timeout_ms), timeout_ms)

    def _follow(self, metadata: Metadata, timeout_ms: int) -> bool:
        """Assign the partitions that metadata show and no others. Returns True if that is a change."""
        self._problems.clear_tried()
        recreated, readable = self._positions.recreated(metadata), self._positions.readable(metadata)
        before = set(self.partitions)
        gained = [at for at in readable if at not in before or at[0] in recreated]
        lost = before - set(readable)
        if not gained and not lost:
            self._positions.adopt_ids(metadata)
            return False
        starts, ends = self._bounds(gained, timeout_ms)
        if recreated or any(not metadata[topic].partitions for topic, _ in lost):
            self._client.reopen()  # its fetched records, sessions and metadata belong to a log that is gone
        for topic in recreated:
            self._positions.forget(topic, starts, ends)
        self._positions.adopt_ids(metadata)
        self._positions.add(starts, ends)
        self.partitions = [at for at in readable if at in starts or (at in before and at not in gained)]
        self._assign()
        self.has_changed = True
        return True

    def _bounds(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> tuple[Offsets, Offsets]:
        """Return the first offsets and the ends of some logs; those that cannot be described are noted and left out."""
        while True:
            partitions = [at for at in partitions if not self._problems.is_suspended(*at)]
            try:
                starts = self._client.starts(partitions, timeout_ms)
                return starts, self._client.stable_ends(partitions, timeout_ms)
            except TopicAuthorizationFailedError as error:
                for topic in _topics_of(error):
                    self._problems.note(topic, read_problems.unauthorized(topic), retry=True)
            except KafkaError:
                if bootstrap_problem(self._connection) is not None or not self._note_cut_off(partitions):
                    raise

    def _note_cut_off(self, partitions: Sequence[TopicPartition]) -> bool:
        """Note the partitions whose leader alone accepts no connection. Returns False if there are none."""
        cut_off = self._client.cut_off(partitions)
        known = self._problems.sentences()
        for (topic, number), (address, cause) in cut_off.items():
            name = partition_name(topic, number)
            if name not in known:  # the address goes to the log of this process only
                log.warning("leader_unreachable", partition=name, advertised=address, cause=cause)
            self._problems.note(name, read_problems.cut_off(topic, number), retry=True)
        return bool(cut_off)

    # ---- after a failure

    def seek_back(self) -> None:
        """Have the client fetch again what it took out of its buffers before it failed."""
        self._client.seek(self.current_offsets())

    def reopen(self) -> None:
        """Continue with a new client.

        Raises:
            BrokerUnreachableError: if no broker answers.
        """
        self._client.reopen()
        self._assign()

    def isolate(self, error: Exception) -> None:
        """Set the partition aside that an error is about, and read the others again.

        Raises:
            ConsumeError: if the error is about no partition in particular.
        """
        at = failed_partition(error)
        if isinstance(error, TopicAuthorizationFailedError):
            for topic in _topics_of(error):
                self._set_aside(topic, read_problems.unauthorized(topic))
        elif at is not None:
            self._set_aside(partition_name(*at), read_problems.unreadable(*at, self.read_up_to(at), error))
        elif isinstance(error, KafkaError):
            raise ConsumeError(f"{self._topics} cannot be read: {error}; check the rights and the disks") from error
        else:
            raise error
        self.seek_back()

    def refresh_bounds(self) -> tuple[Offsets, Offsets] | None:
        """Return the first offset and the end of each partition, for `realign`.

        Returns:
            None if fresh metadata changed the assignment: a recreated topic is not a truncated log.

        Raises:
            KafkaError: if the broker did not answer.
            BrokerUnreachableError: if no broker answered.
        """
        return None if self.refresh() else self._bounds(self.partitions, REFRESH_TIMEOUT_MS)

    def realign(self, wanted: Offsets, starts: Offsets, ends: Offsets) -> None:
        """Move positions that the log does not have to the nearest ones that it has.

        Args:
            wanted: the offset that each partition is to continue from.
            starts: the first offset of each partition.
            ends: the end of each partition.
        """
        for at in starts:
            self._positions.move(at, self._positions.offsets[at], wanted[at], starts, ends)
        self.has_changed = True
        self.seek_back()

    def offsets_after(self, error: LogTruncationError) -> Offsets:
        """Return the offsets to continue from after an unclean leader election: those where the logs diverge."""
        diverged = {(at.topic, at.partition): to.offset for at, to in error.divergent_offsets.items() if to is not None}
        return self._positions.offsets | diverged

    def _set_aside(self, name: str, sentence: str) -> None:
        """Stop reading a topic or partition for a while."""
        self._problems.note(name, sentence, retry=True)
        self.partitions = [at for at in self.partitions if not self._problems.is_suspended(*at)]
        self._assign()

    def _assign(self) -> None:
        self._client.assign(self.current_offsets(), self._paused)


def _topics_of(error: TopicAuthorizationFailedError) -> set[str]:
    return {topic for part in error.args if isinstance(part, set | frozenset | list) for topic in part}
