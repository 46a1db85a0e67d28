"""Reads the log: partitions assigned by rule, offsets kept by whoever reads, broker and topic losses survived."""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import structlog
from kafka.errors import (
    InvalidMetadataError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
    TopicAuthorizationFailedError,
)

from streams import read_problems
from streams.connection import KafkaConnection, bootstrap_problem
from streams.errors import (
    BrokerUnreachableError,
    ConsumeError,
    HeadwaterStreamError,
    MissingTopicError,
    TopicError,
    error_text,
)
from streams.group import GroupCommitter
from streams.log_client import LogClient, failed_partition
from streams.log_positions import Gap, LogPositions
from streams.offsets import Offsets, TopicPartition, partition_name
from streams.outage import Outage
from streams.pacing import Pacing
from streams.read_problems import ReadProblems
from streams.record import Record
from streams.topic_metadata import Metadata, MetadataLookup

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0  # how often an idle consumer asks whether the broker is still there
CHECK_TIMEOUT_MS = 1_000
STALLED_CHECKS = 15  # so many in a row that find records which do not come: the client is stuck
LOOKUP_TIMEOUT_MS = 10_000


class PartitionConsumer:
    """Reads partitions that are assigned, never subscribed: partition p belongs to rank p mod world size.

    Partitions that are added while it reads are found within seconds and read from their first record. A topic or
    partition that cannot be read is set aside, named in `problems`, and tried again; the others are read meanwhile.
    Not safe to be used from several threads at once.

    Args:
        connection: Which Kafka.
        topics: Which topics; within a poll their records come in this order.
        rank: Which of the readers this one is.
        world_size: How many readers share the partitions.
        start: The next offset of each partition, or one end of the log. A topic that is not named begins at its
            earliest record, and so does a partition that was added to a topic that is.
        topic_ids: The logs that `start` belongs to, as `topic_ids` gave them. A topic that is another log by now is
            read from its start.
        group_id: Under which name `commit` records the offsets, for tools that show the lag.
        idle_pause_seconds: Pause between two looks when nothing or little is there. The embedded broker answers an
            empty fetch at once, and without a pause an idle reader takes a whole core; 0 leaves the waiting to the
            broker. Where nothing has come for long, a tenth of that time, to a tenth of a second at most.

    Attributes:
        topics: Which topics.

    Raises:
        BrokerUnreachableError: If no broker answers.
        TopicError: If a topic is deleted at this moment.
        ValueError: If an argument is out of its range.
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
        self._assigned: list[TopicPartition] = []
        self._held: set[TopicPartition] = set()
        self._changed = False  # partitions or positions, in this poll, by other than reading
        self._hanging: Offsets = {}  # stable ends that were read up to, with records of open transactions behind
        self._idle_pause_seconds = idle_pause_seconds
        self._pacing = Pacing(idle_pause_seconds)
        self._outage = Outage(connection)
        self._lookup = MetadataLookup(topics)
        self._next_check = 0.0  # monotonic seconds
        self._unread_checks = 0
        self._committer = GroupCommitter(connection, group_id) if group_id else None
        self._client = LogClient(connection)
        try:
            self._follow(self._lookup.look_now(self._client.manager, LOOKUP_TIMEOUT_MS), LOOKUP_TIMEOUT_MS)
        except KafkaError as error:
            self.close()
            raise self._not_answered(error) from error
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_seconds: float = 0.1, max_records: int = 500) -> list[Record]:
        """Reads what is there: in the order of the topics, partitions and offsets.

        With the broker away it says so once, and goes on when the broker is back; then, and when nothing comes, it may
        take a second longer than asked for. When partitions were added or the log has a gap it returns nothing once:
        `positions` and `gaps` show the change before any record that follows it.

        Args:
            timeout_seconds: How long to wait for the first record.
            max_records: How many at most.

        Raises:
            ConsumeError: If the broker refuses the records of all topics.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._pacing.wait_for_turn(deadline):
            self._changed = False
            self._look()
            if self._changed:
                return []
            records = self._poll_once(max(0.0, deadline - time.monotonic()), max_records)
            self._pacing.looked(len(records), max_records) if self._assigned else self._pacing.rest()
            if records:
                self._outage.over()
                self._unread_checks = 0
                self._next_check = time.monotonic() + CHECK_SECONDS
                return records
            self._check()
            if self._changed:
                return []
        return []

    @property
    def is_broker_lost(self) -> bool:
        """Whether the broker was last found to be away."""
        return self._outage.is_on

    @property
    def is_unanswered(self) -> bool:
        """Whether the brokers of these topics do not answer, though others may."""
        return self._outage.is_unanswered

    def problems(self) -> dict[str, str]:
        """Return what cannot be read, by topic or `topic/partition`, in a sentence each. Safe from another thread."""
        return self._problems.sentences()

    def check_readable(self) -> None:
        """Check that all topics can be read, for a reader that does not wait.

        Raises:
            TopicError: One cannot.
            MissingTopicError: One does not exist.
        """
        for name, problem in self.problems().items():
            raise MissingTopicError(problem) if name in self._positions.missing else TopicError(problem)

    @property
    def gaps(self) -> list[Gap]:
        """Where the log did not have what was asked for, in the order found."""
        return self._positions.gaps

    def positions(self) -> Offsets:
        """The next offset to read, of every known partition of this rank, those in `problems` included."""
        return dict(self._positions.offsets)

    def topic_ids(self) -> dict[str, str]:
        """Return the identity of the logs that `positions` belongs to, by topic, where the broker tells it."""
        return dict(self._positions.ids)

    def is_behind(self, at: TopicPartition) -> bool:
        """Whether the log is known to have more to read of a partition; it asks nobody."""
        if at not in self._assigned:
            return False
        end, read = self._client.high_watermark(at), self._read_up_to(at)
        return end is not None and read < end and self._hanging.get(at) != read

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Reads nothing of these partitions, and of all others again, until the next call."""
        held = set(partitions)
        if held != self._held:
            self._client.resume([at for at in self._held - held if at in self._assigned])
            self._client.pause([at for at in held - self._held if at in self._assigned])
            self._held = held

    def end_offsets(self, timeout_seconds: float = 10.0) -> Offsets:
        """Return up to where each partition that can be read can be read now; an open transaction ends it.

        Raises:
            BrokerUnreachableError: If no broker answers in time.
            TopicError: If a partition has no leader, as when its topic has just been deleted.
        """
        try:
            return self._client.stable_ends(self._assigned, int(timeout_seconds * 1000))
        except KafkaError as error:
            raise self._not_answered(error) from error

    def has_reached(self, ends: Offsets) -> bool:
        """Return whether all records before some ends were read, markers of transactions and compacted ones aside.

        Partitions that cannot be read now are left out: see `problems`.
        """
        return all(self._read_up_to(at) >= end for at, end in ends.items() if at in self._assigned)

    def lag(self, timeout_seconds: float = 10.0) -> Offsets:
        """How many offsets lie between what was read and the log's end, of every partition that can be read.

        Records of a transaction that is still open count.

        Raises:
            BrokerUnreachableError: If no broker answers in time.
            TopicError: If a partition has no leader, as when its topic has just been deleted.
        """
        try:
            self._note_hanging(self._client.stable_ends(self._assigned, int(timeout_seconds * 1000)))
            ends = self._client.log_ends(self._assigned, int(timeout_seconds * 1000))
        except KafkaError as error:
            raise self._not_answered(error) from error
        return {at: max(0, end - self._read_up_to(at)) for at, end in ends.items()}

    def commit(self, offsets: Offsets) -> None:
        """Records offsets under the group, for tools that show the lag. A failure is logged, and does no harm."""
        readable = {at: offset for at, offset in offsets.items() if at in self._assigned}
        if self._committer is not None and readable:
            self._committer.commit(readable)

    def close(self) -> None:
        """Lets go of the connections."""
        self._outage.close()
        self._client.close()
        if self._committer is not None:
            self._committer.close()

    # ---- which partitions are read

    def _look(self) -> None:
        """Look at the topics' metadata when it is time to, without waiting for them."""
        topics = {topic for topic, _ in self._assigned}
        urgent = any(self._client.differs(topic, self._positions.ids.get(topic)) for topic in topics)
        try:
            metadata = self._lookup.poll(self._client.manager, urgent=urgent, problems=self._problems.any)
            if metadata is not None:
                self._follow(metadata, CHECK_TIMEOUT_MS)
        except (KafkaError, BrokerUnreachableError) as error:
            # Where something is read, a check notices that the broker is lost.
            if not self._assigned and not isinstance(error, InvalidMetadataError):
                self._noticed(error_text(error))

    def _follow(self, metadata: Metadata, timeout_ms: int) -> bool:
        """Read the partitions that metadata show, and no others; True if that is a change.

        Raises:
            KafkaError: The broker did not answer; nothing has changed.
            BrokerUnreachableError: Likewise.
        """
        self._problems.clear_tried()
        recreated, readable = self._positions.recreated(metadata), self._positions.readable(metadata)
        before = set(self._assigned)
        gained = [at for at in readable if at not in before or at[0] in recreated]
        lost = before - set(readable)
        if not gained and not lost:
            self._positions.adopt_ids(metadata)
            return False
        starts, ends = self._bounds(gained, timeout_ms)
        if recreated or any(not metadata[topic].partitions for topic, _ in lost):
            self._client.reopen()  # what it has fetched, its sessions and its metadata are of a log that is gone
        for topic in recreated:
            self._positions.forget(topic, starts, ends)
        self._positions.adopt_ids(metadata)
        self._positions.place(starts, ends)
        self._assigned = [at for at in readable if at in starts or (at in before and at not in gained)]
        self._client.assign(self._here(), self._held)
        self._changed = True
        return True

    def _set_aside(self, name: str, sentence: str) -> None:
        """Stop reading a topic or partition that fails, for a while; the others go on."""
        self._problems.note(name, sentence, retry=True)
        self._assigned = [at for at in self._assigned if not self._problems.holds_back(*at)]
        self._client.assign(self._here(), self._held)

    # ---- where they are read

    def _bounds(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> tuple[Offsets, Offsets]:
        """Ask for both ends of some logs; what we may not ask about, or cannot, is left out, and noted."""
        while True:
            partitions = [at for at in partitions if not self._problems.holds_back(*at)]
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
        """Note the partitions whose leader takes no connection, while other brokers do; False if there are none."""
        cut_off = self._client.cut_off(partitions)
        known = self._problems.sentences()
        for (topic, number), (address, cause) in cut_off.items():
            name = partition_name(topic, number)
            if name not in known:  # the address is for the log of the process alone
                log.warning("leader_unreachable", partition=name, advertised=address, cause=cause)
            self._problems.note(name, read_problems.cut_off(topic, number), retry=True)
        return bool(cut_off)

    def _poll_once(self, timeout_seconds: float, max_records: int) -> list[Record]:
        if not self._assigned:
            return []
        timeout_ms = 0 if self._idle_pause_seconds else int(timeout_seconds * 1000)
        try:
            return self._in_order(self._client.fetch(timeout_ms, max_records))
        except OffsetOutOfRangeError:
            self._realign(self._positions.offsets)
        except LogTruncationError as error:
            self._realign(self._positions.offsets | _divergence(error))
        except RetriableError as error:
            self._go_back()
            self._failed(error)
        except Exception as error:  # of one partition; whatever its records made the client raise
            self._isolate(error)
        return []

    def _isolate(self, error: Exception) -> None:
        """Set the partition aside that an error is about, and have the client read the others again."""
        at = failed_partition(error)
        if isinstance(error, TopicAuthorizationFailedError):
            for topic in _topics_of(error):
                self._set_aside(topic, read_problems.unauthorized(topic))
        elif at is not None:
            self._set_aside(partition_name(*at), read_problems.sentence(*at, self._read_up_to(at), error))
        elif isinstance(error, KafkaError):
            raise ConsumeError(f"{self.topics} cannot be read: {error}; check the rights and the disks") from error
        else:
            raise error
        self._go_back()

    def _go_back(self) -> None:
        """Has the client read again what it took out of its buffers before it failed: it will not hand that out."""
        self._client.seek(self._here())

    def _in_order(self, fetched: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        records: list[Record] = []
        for at in self._assigned if fetched else ():  # in the order of topics and partitions
            batch = fetched.get(at)
            if batch:
                topic, number = at
                records += [Record(topic, number, r.offset, r.key, r.value, r.timestamp) for r in batch]
                self._positions.offsets[at] = batch[-1].offset + 1
                if self._problems.any:
                    self._problems.clear(topic)
                    self._problems.clear(partition_name(topic, number))
        return records

    def _check(self) -> None:
        """Asks, when nothing comes, whether the broker is there and its log still reaches to where we are.

        The client hides a lost broker; and the embedded broker answers beyond its end with silence.
        """
        if time.monotonic() < self._next_check or not self._assigned:
            return
        try:
            ends = self._client.stable_ends(self._assigned, CHECK_TIMEOUT_MS)
        except KafkaError as error:
            self._failed(error)
            return
        self._outage.over()
        self._next_check = time.monotonic() + CHECK_SECONDS
        if any(self._positions.offsets[at] > end for at, end in ends.items()):
            self._realign(self._positions.offsets)
            return
        self._note_hanging(ends)
        self._notice_stall(ends)

    def _failed(self, error: KafkaError) -> None:
        """Report a failed request as a lost broker, unless metadata that are asked for now explain it.

        A topic that was deleted, or has no leader, fails requests too: the client knows no leader, or asks until its
        time is up.
        """
        if bootstrap_problem(self._connection) is None:
            with suppress(KafkaError, BrokerUnreachableError):
                changed = self._follow(self._lookup.look_now(self._client.manager, CHECK_TIMEOUT_MS), CHECK_TIMEOUT_MS)
                if changed or isinstance(error, InvalidMetadataError):
                    self._next_check = time.monotonic() + CHECK_SECONDS
                    return
        self._noticed(error_text(error))

    def _note_hanging(self, stable_ends: Offsets) -> None:
        """Note where all was read that can be: records of an open transaction behind are not to be waited for."""
        self._hanging = {at: end for at, end in stable_ends.items() if self._read_up_to(at) == end}

    def _notice_stall(self, ends: Offsets) -> None:
        """Goes on with a new client when the log holds records and this one, its broker there, brings none."""
        unread = {at for at, end in ends.items() if at not in self._held and self._read_up_to(at) < end}
        self._unread_checks = self._unread_checks + 1 if unread else 0
        if self._unread_checks < STALLED_CHECKS:
            return
        log.warning("consumer_stalled", unread=sorted(unread), checks=STALLED_CHECKS, goes_on="with a new connection")
        try:
            self._client.reopen()
        except BrokerUnreachableError as error:
            self._noticed(error.reason)
            return
        self._unread_checks = 0
        self._client.assign(self._here(), self._held)

    def _realign(self, wanted: Offsets) -> None:
        """Moves positions that the log does not have, or no longer, to the nearest that it has."""
        try:
            if self._follow(self._lookup.look_now(self._client.manager, CHECK_TIMEOUT_MS), CHECK_TIMEOUT_MS):
                return  # a topic that was recreated is no shorter log
            starts, ends = self._bounds(self._assigned, CHECK_TIMEOUT_MS)
        except KafkaError as error:
            self._failed(error)
            return
        except BrokerUnreachableError as error:
            self._noticed(error.reason)
            return
        self._outage.over()
        for at in starts:
            self._positions.move(at, self._positions.offsets[at], wanted[at], starts, ends)
        self._changed = True
        self._go_back()

    def _not_answered(self, error: KafkaError) -> HeadwaterStreamError:
        if isinstance(error, InvalidMetadataError):
            return TopicError(
                f"topics {self.topics} cannot be read to their end: {error_text(error)}; check that they exist, and "
                "that the brokers that hold them run"
            )
        return BrokerUnreachableError(self._connection.bootstrap_servers, error_text(error))

    def _noticed(self, reason: str) -> None:
        self._next_check = time.monotonic() + self._outage.noticed(reason)

    def _here(self) -> Offsets:
        return {at: self._positions.offsets[at] for at in self._assigned}

    def _read_up_to(self, at: TopicPartition) -> int:
        """The client's own position: it passes over the markers of transactions, which are no records."""
        return max(self._client.position(at) or 0, self._positions.offsets[at])


def _topics_of(error: TopicAuthorizationFailedError) -> set[str]:
    return {topic for part in error.args if isinstance(part, set | frozenset | list) for topic in part}


def _divergence(error: LogTruncationError) -> Offsets:
    return {(at.topic, at.partition): to.offset for at, to in error.divergent_offsets.items() if to is not None}
