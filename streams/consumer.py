"""Reads the log: partitions assigned by rule, offsets kept by whoever reads, broker and topic losses survived."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import structlog
from kafka.errors import (
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
    TopicAuthorizationFailedError,
)

from streams import read_problems
from streams.connection import KafkaConnection
from streams.errors import BrokerUnreachableError, ConsumeError, TopicError
from streams.group import GroupCommitter
from streams.log_client import LogClient, Offsets, TopicPartition, failed_partition
from streams.outage import Outage
from streams.read_problems import ReadProblems
from streams.topic_metadata import Metadata, MetadataLookup, is_other_log

__all__ = ["Gap", "Offsets", "PartitionConsumer", "Record", "TopicPartition"]

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0  # how often an idle consumer asks whether the broker is still there
CHECK_TIMEOUT_MS = 1_000
STALLED_CHECKS = 15  # so many in a row that find records which do not come: the client is stuck
FEW_RECORDS = 100  # after a look that brought so many, or all it might, there is no pause: the log is long
LONGEST_PAUSE_SECONDS = 0.1  # how much later than the broker could a record is noticed after a quiet second
LOOKUP_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log, undecoded."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


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
        gaps: Where the log did not have what was asked for, in the order found.

    Raises:
        BrokerUnreachableError: If no broker answers.
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
        self.gaps: list[Gap] = []
        self._connection = connection
        self.topics = list(topics)
        self._rank, self._world_size = rank, world_size
        self._from_latest = start == "latest"
        self._positions: Offsets = _of_topics(start, topics) if isinstance(start, dict) else {}
        self._ids = {topic: id_ for topic, id_ in (topic_ids or {}).items() if topic in topics}
        self._first: dict[str, frozenset[int]] = {topic: frozenset() for topic, _ in self._positions}
        self._assigned: list[TopicPartition] = []
        self._held: set[TopicPartition] = set()
        self._changed = False  # partitions or positions, in this poll, by other than reading
        self._hanging: Offsets = {}  # stable ends that were read up to, with records of open transactions behind
        self._problems = ReadProblems()
        self._idle_pause_seconds = idle_pause_seconds
        self._outage = Outage(connection)
        self._lookup = MetadataLookup(topics)
        self._next_check = 0.0  # monotonic seconds
        self._next_look, self._last_came = 0.0, time.monotonic()  # likewise
        self._unread_checks = 0
        self._committer = GroupCommitter(connection, group_id) if group_id else None
        self._client = LogClient(connection)
        try:
            self._follow(self._lookup.look_now(self._client.manager, LOOKUP_TIMEOUT_MS), LOOKUP_TIMEOUT_MS)
        except KafkaError as error:
            self.close()
            raise BrokerUnreachableError(connection.bootstrap_servers, str(error)) from error
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
        while self._wait_for_turn(deadline):
            self._changed = False
            self._look()
            if self._changed:
                return []
            records = self._poll_once(max(0.0, deadline - time.monotonic()), max_records)
            now = time.monotonic()
            if records:
                self._outage.over()
                self._unread_checks = 0
                self._last_came, self._next_check = now, now + CHECK_SECONDS
            many = len(records) >= min(FEW_RECORDS, max_records)
            self._next_look = now if many else now + self._pause_seconds()
            if records:
                return records
            self._check()
            if self._changed:
                return []
        return []

    def _wait_for_turn(self, deadline: float) -> bool:
        """Wait until the next look; False where that comes after a deadline, monotonic seconds."""
        time.sleep(max(0.0, min(self._next_look, deadline) - time.monotonic()))
        return self._next_look <= deadline

    def _pause_seconds(self) -> float:
        """How long to wait for another look: each costs a millisecond or more, whatever it brings."""
        if not self._assigned:
            return LONGEST_PAUSE_SECONDS
        if not self._idle_pause_seconds:
            return 0.0
        quiet_seconds = time.monotonic() - self._last_came
        return max(self._idle_pause_seconds, min(LONGEST_PAUSE_SECONDS, quiet_seconds / 10))

    @property
    def is_away(self) -> bool:
        """Whether the broker was last found to be away."""
        return self._outage.is_on

    @property
    def has_no_answers(self) -> bool:
        """Whether the brokers of these topics do not answer, though others may."""
        return self._outage.has_no_answers

    def problems(self) -> dict[str, str]:
        """Return what cannot be read, by topic or `topic/partition`, in a sentence each. Safe from another thread."""
        return self._problems.sentences()

    def require(self) -> None:
        """Check that all topics can be read, for a reader that does not wait.

        Raises:
            TopicError: One cannot.
        """
        for problem in self.problems().values():
            raise TopicError(problem)

    def positions(self) -> Offsets:
        """The next offset to read, of every known partition of this rank, those in `problems` included."""
        return dict(self._positions)

    def topic_ids(self) -> dict[str, str]:
        """Return the identity of the logs that `positions` belongs to, by topic, where the broker tells it."""
        return dict(self._ids)

    def is_behind(self, at: TopicPartition) -> bool:
        """Whether the log is known to have more to read of a partition; it asks nobody."""
        if at not in self._assigned:
            return False
        end, read = self._client.high_watermark(at), self._read_up_to(at)
        return end is not None and read < end and self._hanging.get(at) != read

    def hold(self, partitions: Collection[TopicPartition]) -> None:
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
        """
        try:
            return self._client.stable_ends(self._assigned, int(timeout_seconds * 1000))
        except KafkaError as error:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, str(error)) from error

    def reached(self, ends: Offsets) -> bool:
        """Return whether all records before some ends were read, markers of transactions and compacted ones aside.

        Partitions that cannot be read now are left out: see `problems`.
        """
        return all(self._read_up_to(at) >= end for at, end in ends.items() if at in self._assigned)

    def lag(self, timeout_seconds: float = 10.0) -> Offsets:
        """How many offsets lie between what was read and the log's end, of every partition that can be read.

        Records of a transaction that is still open count.

        Raises:
            BrokerUnreachableError: If no broker answers in time.
        """
        try:
            self._note_hanging(self._client.stable_ends(self._assigned, int(timeout_seconds * 1000)))
            ends = self._client.log_ends(self._assigned, int(timeout_seconds * 1000))
        except KafkaError as error:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, str(error)) from error
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
        urgent = any(self._client.differs(topic, self._ids.get(topic)) for topic in topics)
        try:
            metadata = self._lookup.poll(self._client.manager, urgent=urgent, problems=self._problems.any)
            if metadata is not None:
                self._follow(metadata, CHECK_TIMEOUT_MS)
        except (KafkaError, BrokerUnreachableError) as error:
            if not self._assigned:  # else a check of what is read notices it
                self._noticed(str(error))

    def _follow(self, metadata: Metadata, timeout_ms: int) -> bool:
        """Read the partitions that metadata show, and no others; True if that is a change.

        Raises:
            KafkaError: The broker did not answer; nothing has changed.
            BrokerUnreachableError: Likewise.
        """
        self._problems.clear_tried()
        other = {topic for topic in self.topics if is_other_log(self._ids.get(topic), metadata[topic].identity)}
        readable = [at for topic in self.topics for at in self._readable(topic, metadata)]
        before = set(self._assigned)
        gained = [at for at in readable if at not in before or at[0] in other]
        lost = before - set(readable)
        if not gained and not lost:
            self._adopt_ids(metadata)
            return False
        starts, ends = self._bounds(gained, timeout_ms)
        if other or any(not metadata[topic].partitions for topic, _ in lost):
            self._client.reopen()  # what it has fetched, its sessions and its metadata are of a log that is gone
        for topic in other:
            self._forget(topic, starts, ends)
        self._adopt_ids(metadata)
        for at in starts:
            wanted = self._positions.get(at, self._first_offset(at, starts, ends))
            self._positions[at] = self._nearest(at, wanted, wanted, starts[at], ends[at])
        self._assigned = [at for at in readable if at in starts or (at in before and at not in gained)]
        self._client.assign({at: self._positions[at] for at in self._assigned}, self._held)
        self._changed = True
        return True

    def _readable(self, topic: str, metadata: Metadata) -> Iterable[TopicPartition]:
        """Return the partitions of a topic that are this rank's and can be read; note what cannot."""
        found = metadata[topic]
        if found.error is not None and not found.partitions:
            if not found.exists:
                self._first.setdefault(topic, frozenset())
            was_read = any(name == topic for name, _ in self._positions)
            self._problems.note(topic, read_problems.absent(topic, found, was_read=was_read))
            return []
        self._problems.clear_seen(topic)
        self._first.setdefault(topic, found.partitions)
        mine = [number for number in sorted(found.partitions) if number % self._world_size == self._rank]
        for number in mine:
            if number in found.leaderless:
                self._problems.note(f"{topic}/{number}", read_problems.leaderless(topic, number))
            else:
                self._problems.clear_seen(f"{topic}/{number}")
        return [
            (topic, number)
            for number in mine
            if number not in found.leaderless and not self._problems.holds_back(topic, number)
        ]

    def _first_offset(self, at: TopicPartition, starts: Offsets, ends: Offsets) -> int:
        """Where a partition without a position begins: one that came to be while its topic was read, at 0."""
        topic, number = at
        if number not in self._first[topic]:
            return 0
        return ends[at] if self._from_latest else starts[at]

    def _forget(self, topic: str, starts: Offsets, ends: Offsets) -> None:
        """Forget the log that a topic was before it was recreated; the new one is read from its first record."""
        for at in [at for at in self._positions if at[0] == topic]:
            start, end = starts.get(at, 0), ends.get(at, 0)
            self._add(
                Gap(*at, wanted=self._positions.pop(at), resumed=0, log_start=start, log_end=end, cause="recreated")
            )
        self._first[topic] = frozenset()
        self._ids.pop(topic, None)

    def _adopt_ids(self, metadata: Metadata) -> None:
        for topic in self.topics:
            identity = metadata[topic].identity
            if identity is not None and metadata[topic].partitions:
                self._ids.setdefault(topic, identity)

    def _set_aside(self, name: str, sentence: str) -> None:
        """Stop reading a topic or partition that fails, for a while; the others go on."""
        self._problems.note(name, sentence, retry=True)
        self._assigned = [at for at in self._assigned if not self._problems.holds_back(*at)]
        self._client.assign({at: self._positions[at] for at in self._assigned}, self._held)

    # ---- where they are read

    def _nearest(self, at: TopicPartition, wanted: int, target: int, log_start: int, log_end: int) -> int:
        """Return the offset nearest to a target that the log has; if that is not what was wanted, note the gap."""
        resumed = min(max(target, log_start), log_end)
        if resumed != wanted:
            cause: Literal["retention", "truncation"] = "retention" if resumed > wanted else "truncation"
            self._add(Gap(*at, wanted, resumed, log_start, log_end, cause))
        return resumed

    def _add(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self._changed = True
        log.warning("log_gap", **asdict(gap), missed=gap.missed)

    def _bounds(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> tuple[Offsets, Offsets]:
        """Ask for both ends of some logs; a topic that we may not ask about is left out, and noted."""
        while True:
            partitions = [at for at in partitions if not self._problems.holds_back(*at)]
            try:
                starts = self._client.starts(partitions, timeout_ms)
                return starts, self._client.stable_ends(partitions, timeout_ms)
            except TopicAuthorizationFailedError as error:
                for topic in _topics_of(error):
                    self._problems.note(topic, read_problems.unauthorized(topic), retry=True)

    def _poll_once(self, timeout_seconds: float, max_records: int) -> list[Record]:
        if not self._assigned:
            return []
        timeout_ms = 0 if self._idle_pause_seconds else int(timeout_seconds * 1000)
        try:
            return self._in_order(self._client.fetch(timeout_ms, max_records))
        except OffsetOutOfRangeError:
            self._realign(self._positions)
        except LogTruncationError as error:
            self._realign(self._positions | _divergence(error))
        except RetriableError as error:
            self._go_back()
            self._noticed(str(error))
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
            self._set_aside(f"{at[0]}/{at[1]}", read_problems.sentence(*at, self._read_up_to(at), error))
        elif isinstance(error, KafkaError):
            raise ConsumeError(f"{self.topics} cannot be read: {error}; check the rights and the disks") from error
        else:
            raise error
        self._go_back()

    def _go_back(self) -> None:
        """Has the client read again what it took out of its buffers before it failed: it will not hand that out."""
        self._client.seek({at: self._positions[at] for at in self._assigned})

    def _in_order(self, fetched: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        records: list[Record] = []
        for at in self._assigned if fetched else ():  # in the order of topics and partitions
            batch = fetched.get(at)
            if batch:
                topic, number = at
                records += [Record(topic, number, r.offset, r.key, r.value, r.timestamp) for r in batch]
                self._positions[at] = batch[-1].offset + 1
                if self._problems.any:
                    self._problems.clear(topic)
                    self._problems.clear(f"{topic}/{number}")
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
            self._noticed(str(error))
            return
        self._outage.over()
        self._next_check = time.monotonic() + CHECK_SECONDS
        if any(self._positions[at] > end for at, end in ends.items()):
            self._realign(self._positions)
            return
        self._note_hanging(ends)
        self._notice_stall(ends)

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
        self._client.assign({at: self._positions[at] for at in self._assigned}, self._held)

    def _realign(self, wanted: Offsets) -> None:
        """Moves positions that the log does not have, or no longer, to the nearest that it has."""
        try:
            if self._follow(self._lookup.look_now(self._client.manager, CHECK_TIMEOUT_MS), CHECK_TIMEOUT_MS):
                return  # a topic that was recreated is no shorter log
            starts, ends = self._bounds(self._assigned, CHECK_TIMEOUT_MS)
        except (KafkaError, BrokerUnreachableError) as error:
            self._noticed(str(error))
            return
        self._outage.over()
        for at in starts:
            position = self._positions[at]
            if wanted[at] != position or not starts[at] <= position <= ends[at]:
                self._positions[at] = self._nearest(at, position, min(wanted[at], ends[at]), starts[at], ends[at])
        self._go_back()

    def _noticed(self, reason: str) -> None:
        self._next_check = time.monotonic() + self._outage.noticed(reason)

    def _read_up_to(self, at: TopicPartition) -> int:
        """The client's own position: it passes over the markers of transactions, which are no records."""
        return max(self._client.position(at) or 0, self._positions[at])


def _of_topics(offsets: Offsets, topics: Collection[str]) -> Offsets:
    return {at: offset for at, offset in offsets.items() if at[0] in topics}


def _topics_of(error: TopicAuthorizationFailedError) -> set[str]:
    return {topic for part in error.args if isinstance(part, set | frozenset | list) for topic in part}


def _divergence(error: LogTruncationError) -> Offsets:
    return {(at.topic, at.partition): to.offset for at, to in error.divergent_offsets.items() if to is not None}
