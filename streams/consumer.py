"""Kafka reader with partitions assigned by rule and offsets kept by its caller; survives lost brokers and topics."""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import structlog
from kafka.errors import InvalidMetadataError, KafkaError, LogTruncationError, OffsetOutOfRangeError, RetriableError

from streams.assignment import REFRESH_TIMEOUT_MS, Assignment
from streams.connection import KafkaConnection, bootstrap_problem
from streams.errors import BrokerUnreachableError, MissingTopicError, TopicError, error_text
from streams.group import GroupCommitter
from streams.log_client import LogClient
from streams.log_positions import Gap, LogPositions
from streams.offsets import Offsets, TopicPartition, partition_name
from streams.outage import Outage, unanswered_error
from streams.pacing import Pacing
from streams.read_problems import ReadProblems
from streams.record import Record

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0  # between two checks of an idle consumer that the broker is still there
STALLED_CHECKS = 15  # checks in a row that find records which do not arrive: the client is stuck
LOOKUP_TIMEOUT_MS = 10_000


class PartitionConsumer:
    """A reader of assigned partitions, without subscription: partition p belongs to rank p mod world size.

    Partitions that are added while it reads are found within seconds and read from their first record. A topic or
    partition that cannot be read is set aside, listed in `problems`, and retried; the others are read meanwhile.
    Not safe for use from several threads at once.

    Args:
        connection: the brokers to read from.
        topics: the names of the topics; records of one poll come in this order.
        rank: the number of this reader among those that share the partitions, from 0.
        world_size: the number of readers that share the partitions.
        start: the next offset of each partition, or one end of the log. A topic that is not named starts at its
            earliest record, and so does a partition that was added to a topic that is named.
        topic_ids: the logs that `start` belongs to, as returned by `topic_ids`. A topic that is another log by now is
            read from its start.
        group_id: the consumer group under which `commit` records offsets, for tools that show the lag.
        idle_pause_seconds: the pause after a poll that brought few records or none. The embedded broker answers an
            empty fetch at once, and without a pause an idle reader would use a whole core; 0 leaves the waiting to
            the broker. After a long silence the pause is a tenth of the silence, at most a tenth of a second.

    Attributes:
        topics: the names of the topics.

    Raises:
        BrokerUnreachableError: if no broker answers.
        TopicError: if a topic is being deleted at this moment.
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Sequence[str],
        *,
        rank: int = 0,
        world_size: int = 1,
        start: Offsets | Literal["earliest", "latest"] = "earliest",
        topic_ids: Mapping[str, str] | None = None,
        group_id: str | None = None,
        idle_pause_seconds: float = 0.02,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be from 0 to world_size - 1 ({world_size - 1}), got {rank}")
        if idle_pause_seconds < 0:
            raise ValueError(f"`idle_pause_seconds` must be at least 0, got {idle_pause_seconds}")
        self._connection = connection
        self.topics = list(topics)
        self._problems = ReadProblems()
        self._positions = LogPositions(
            self.topics,
            rank=rank,
            world_size=world_size,
            start=start,
            topic_ids=dict(topic_ids or {}),
            problems=self._problems,
        )
        self._hanging: Offsets = {}  # stable ends that were reached, with records of open transactions behind them
        self._idle_pause_seconds = idle_pause_seconds
        self._pacing = Pacing(idle_pause_seconds)
        self._outage = Outage(connection)
        self._next_check = 0.0  # monotonic seconds
        self._unread_checks = 0
        self._committer = GroupCommitter(connection, group_id) if group_id else None
        self._client = LogClient(connection)
        self._assignment = Assignment(connection, self._client, self._positions, self._problems, self.topics)
        try:
            self._assignment.refresh(LOOKUP_TIMEOUT_MS)
        except KafkaError as error:
            self.close()
            raise unanswered_error(error, connection, self.topics) from error
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_seconds: float = 0.1, max_records: int = 500) -> list[Record]:
        """Return the records that are available, in the order of topics, partitions and offsets.

        A lost broker is logged once, and reading continues when it is back; then, and when no records come, a call may
        take a second longer than the timeout. When partitions were added or the log has a gap, an empty list is
        returned once: `positions` and `gaps` show the change before any record that follows it.

        Args:
            timeout_seconds: how long to wait for the first record.
            max_records: the largest number of records to return.

        Raises:
            ConsumeError: if the broker refuses the records of all topics.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._pacing.wait_for_turn(deadline):
            self._assignment.has_changed = False
            self._refresh()
            if self._assignment.has_changed:
                return []
            records = self._poll_once(max(0.0, deadline - time.monotonic()), max_records)
            self._set_pace(records, max_records)
            if records:
                self._outage.record_success()
                self._unread_checks = 0
                self._next_check = time.monotonic() + CHECK_SECONDS
                return records
            self._check()
            if self._assignment.has_changed:
                return []
        return []

    @property
    def is_broker_lost(self) -> bool:
        """True while the brokers answer neither this reader nor any other one of the process."""
        return self._outage.is_confirmed

    @property
    def is_unanswered(self) -> bool:
        """True while the brokers do not answer this reader, though they may answer others."""
        return self._outage.is_unanswered

    def problems(self) -> dict[str, str]:
        """Return the problems of reading, one sentence per topic or `topic/partition`. Safe from another thread."""
        return self._problems.sentences()

    def check_readable(self) -> None:
        """Check that all topics can be read, for a reader that does not wait.

        Raises:
            TopicError: if a topic cannot be read.
            MissingTopicError: if a topic does not exist.
        """
        for name, problem in self.problems().items():
            raise MissingTopicError(problem) if name in self._positions.missing else TopicError(problem)

    @property
    def gaps(self) -> list[Gap]:
        """The places where the log did not have the next offset to read, in the order in which they were found."""
        return self._positions.gaps

    def positions(self) -> Offsets:
        """Return the next offset of every known partition of this rank, including those in `problems`."""
        return dict(self._positions.offsets)

    def topic_ids(self) -> dict[str, str]:
        """Return the identity of the logs that `positions` belongs to, by topic, where the broker reports it."""
        return dict(self._positions.ids)

    def is_behind(self, at: TopicPartition) -> bool:
        """Return whether the log is known to have more records of a partition; sends no request."""
        if at not in self._assignment.partitions:
            return False
        end, read = self._client.high_watermark(at), self._assignment.read_up_to(at)
        return end is not None and read < end and self._hanging.get(at) != read

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Read nothing from these partitions, and resume all others, until the next call."""
        self._assignment.pause(partitions)

    def end_offsets(self, timeout_seconds: float = 10.0) -> Offsets:
        """Return the end up to which each assigned partition can be read; an open transaction ends it.

        Raises:
            BrokerUnreachableError: if no broker answers in time.
            TopicError: if a partition has no leader, as when its topic has just been deleted.
        """
        try:
            return self._client.stable_ends(self._assignment.partitions, int(timeout_seconds * 1000))
        except KafkaError as error:
            raise unanswered_error(error, self._connection, self.topics) from error

    def has_reached(self, ends: Offsets) -> bool:
        """Return whether all records before some ends were read, markers of transactions and compacted ones aside.

        Partitions that cannot be read now are left out: see `problems`.
        """
        partitions = self._assignment.partitions
        return all(self._assignment.read_up_to(at) >= end for at, end in ends.items() if at in partitions)

    def lag(self, timeout_seconds: float = 10.0) -> Offsets:
        """Return the number of offsets between the position and the log's end of every partition that can be read.

        Records of a transaction that is still open count.

        Raises:
            BrokerUnreachableError: if no broker answers in time.
            TopicError: if a partition has no leader, as when its topic has just been deleted.
        """
        timeout_ms = int(timeout_seconds * 1000)
        try:
            self._note_hanging(self._client.stable_ends(self._assignment.partitions, timeout_ms))
            ends = self._client.log_ends(self._assignment.partitions, timeout_ms)
        except KafkaError as error:
            raise unanswered_error(error, self._connection, self.topics) from error
        return {at: max(0, end - self._assignment.read_up_to(at)) for at, end in ends.items()}

    def commit(self, offsets: Offsets) -> None:
        """Record offsets under the consumer group, for tools that show the lag; a failure is only logged."""
        readable = {at: offset for at, offset in offsets.items() if at in self._assignment.partitions}
        if self._committer is not None and readable:
            self._committer.commit(readable)

    def close(self) -> None:
        """Close the connections."""
        self._outage.close()
        self._client.close()
        if self._committer is not None:
            self._committer.close()

    # ---- one poll

    def _refresh(self) -> None:
        try:
            self._assignment.refresh_if_due()
        except (KafkaError, BrokerUnreachableError) as error:
            # While something is assigned, `_check` detects that the broker is lost.
            if not self._assignment.partitions and not isinstance(error, InvalidMetadataError):
                self._record_failure(error_text(error))

    def _poll_once(self, timeout_seconds: float, max_records: int) -> list[Record]:
        if not self._assignment.partitions:
            return []
        timeout_ms = 0 if self._idle_pause_seconds else int(timeout_seconds * 1000)
        try:
            return self._records(self._client.fetch(timeout_ms, max_records))
        except OffsetOutOfRangeError:
            self._realign(self._positions.offsets)
        except LogTruncationError as error:
            self._realign(self._assignment.offsets_after(error))
        except RetriableError as error:
            self._assignment.seek_back()
            self._explain(error)
        except Exception as error:  # whatever the records of one partition made the client raise
            self._assignment.isolate(error)
        return []

    def _records(self, fetched: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        """Convert fetched records, in the order of topics and partitions, and advance the positions."""
        records: list[Record] = []
        for at in self._assignment.partitions if fetched else ():
            batch = fetched.get(at)
            if batch:
                topic, number = at
                records += [Record(topic, number, r.offset, r.key, r.value, r.timestamp) for r in batch]
                self._positions.offsets[at] = batch[-1].offset + 1
                if self._problems.any:
                    self._problems.clear(topic)
                    self._problems.clear(partition_name(topic, number))
        return records

    def _set_pace(self, records: Sequence[Record], max_records: int) -> None:
        if self._assignment.partitions:
            self._pacing.record_poll(len(records), max_records)
        else:
            self._pacing.record_idle()

    # ---- health of broker, log and client

    def _check(self) -> None:
        """Check, when no records come, that the broker is there and that its log still reaches the positions.

        The client hides a lost broker, and the embedded broker answers fetches beyond its end with nothing.
        """
        if time.monotonic() < self._next_check or not self._assignment.partitions:
            return
        try:
            ends = self._client.stable_ends(self._assignment.partitions, REFRESH_TIMEOUT_MS)
        except KafkaError as error:
            self._explain(error)
            return
        self._outage.record_success()
        self._next_check = time.monotonic() + CHECK_SECONDS
        if any(self._positions.offsets[at] > end for at, end in ends.items()):
            self._realign(self._positions.offsets)
            return
        self._note_hanging(ends)
        self._check_stall(ends)

    def _explain(self, error: KafkaError) -> None:
        """Report a failed request as a lost broker, unless fresh metadata explain it.

        Requests also fail when a topic was deleted or has no leader: the client knows no leader, or retries until its
        timeout.
        """
        if bootstrap_problem(self._connection) is None:
            with suppress(KafkaError, BrokerUnreachableError):
                if self._assignment.refresh() or isinstance(error, InvalidMetadataError):
                    self._next_check = time.monotonic() + CHECK_SECONDS
                    return
        self._record_failure(error_text(error))

    def _realign(self, wanted: Offsets) -> None:
        """Move positions that the log does not have to the nearest ones that it has."""
        try:
            bounds = self._assignment.refresh_bounds()
        except KafkaError as error:
            self._explain(error)
        except BrokerUnreachableError as error:
            self._record_failure(error.reason)
        else:
            if bounds is not None:
                self._outage.record_success()
                self._assignment.realign(wanted, *bounds)

    def _note_hanging(self, stable_ends: Offsets) -> None:
        """Note the partitions that were read up to their stable end: open transactions are not waited for."""
        self._hanging = {at: end for at, end in stable_ends.items() if self._assignment.read_up_to(at) == end}

    def _check_stall(self, ends: Offsets) -> None:
        """Replace a client that brings no records though the log has some and the broker answers."""
        paused = self._assignment.paused
        unread = {at for at, end in ends.items() if at not in paused and self._assignment.read_up_to(at) < end}
        self._unread_checks = self._unread_checks + 1 if unread else 0
        if self._unread_checks < STALLED_CHECKS:
            return
        log.warning("consumer_stalled", unread=sorted(unread), checks=STALLED_CHECKS, goes_on="with a new connection")
        try:
            self._assignment.reopen()
        except BrokerUnreachableError as error:
            self._record_failure(error.reason)
            return
        self._unread_checks = 0

    def _record_failure(self, reason: str) -> None:
        self._next_check = time.monotonic() + self._outage.record_failure(reason)
