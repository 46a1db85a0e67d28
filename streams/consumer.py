"""Reads the log: partitions assigned by rule, offsets kept by whoever reads, broker losses survived."""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError, RetriableError

from streams.connection import FIRST_BACKOFF_SECONDS, KafkaConnection, backoff_seconds, open_client, refusal
from streams.errors import BrokerUnreachableError, ConsumeError, TopicError
from streams.group import GroupCommitter

log = structlog.get_logger(__name__)

TopicPartition = tuple[str, int]
Offsets = dict[TopicPartition, int]  # the next offset to read

CHECK_SECONDS = 1.0  # how often an idle consumer asks whether the broker is still there
CHECK_TIMEOUT_MS = 1_000
STALLED_CHECKS = 15  # so many in a row that find records which do not come: the client is stuck
FEW_RECORDS = 100  # after a look that brought so many, or all it might, there is no pause: the log is long
LONGEST_PAUSE_SECONDS = 0.1  # how much later than the broker could a record is noticed after a quiet second
FETCH_WAIT_MS = 100  # a broker answers one request after the other: whoever asks for offsets waits behind an idle fetch
LOOKUP_TIMEOUT_MS = 10_000
CLOSE_TIMEOUT_MS = 2_000


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
    """A place in the log that could not be read as asked: the records from there are gone."""

    topic: str
    partition: int
    wanted: int  # the offset that was to be read next
    resumed: int  # the offset from which it goes on
    log_start: int
    log_end: int


class PartitionConsumer:
    """Reads partitions that are assigned, never subscribed: partition p belongs to rank p mod world size.

    Not safe to be used from several threads at once.

    Args:
        connection: Which Kafka.
        topics: Which topics; within a poll their records come in this order.
        rank: Which of the readers this one is.
        world_size: How many readers share the partitions.
        start: The next offset of each partition, or one end of the log. A partition that is not named begins at its
            earliest record.
        group_id: Under which name `commit` records the offsets, for tools that show the lag.
        idle_pause_seconds: Pause between two looks when nothing or little is there. The embedded broker answers an
            empty fetch at once, and without a pause an idle reader takes a whole core; 0 leaves the waiting to the
            broker. Where nothing has come for long, a tenth of that time, to a tenth of a second at most.

    Attributes:
        gaps: Where the log did not have what was asked for, in the order found.

    Raises:
        BrokerUnreachableError: If no broker answers.
        TopicError: If a topic does not exist.
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
        group_id: str | None = None,
        idle_pause_seconds: float = 0.02,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be from 0 to world_size - 1 ({world_size - 1}), got {rank}")
        if idle_pause_seconds < 0:
            raise ValueError(f"`idle_pause_seconds` must be at least 0, got {idle_pause_seconds}")
        self.gaps: list[Gap] = []
        self._held: set[KafkaPartition] = set()
        self._connection = connection
        self._topics = list(topics)
        self._idle_pause_seconds = idle_pause_seconds
        self._outage = _Outage(connection)
        self._next_check = 0.0  # monotonic seconds
        self._next_look, self._last_came = 0.0, time.monotonic()  # likewise
        self._unread_checks = 0
        self._committer = GroupCommitter(connection, group_id) if group_id else None
        self._consumer = self._open()
        try:
            self._assigned = self._assign(rank, world_size)
            self._positions = self._seek_all(start)
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_seconds: float = 0.1, max_records: int = 500) -> list[Record]:
        """Reads what is there: in the order of the topics, partitions and offsets.

        With the broker away it says so once, and goes on when the broker is back; then, and when nothing comes, it may
        take a second longer than asked for.

        Args:
            timeout_seconds: How long to wait for the first record.
            max_records: How many at most.

        Raises:
            ConsumeError: If the broker refuses the records, or they are corrupt.
        """
        deadline = time.monotonic() + timeout_seconds
        while self._wait_for_turn(deadline):
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
        return []

    def _wait_for_turn(self, deadline: float) -> bool:
        """Wait until the next look; False where that comes after a deadline, monotonic seconds."""
        time.sleep(max(0.0, min(self._next_look, deadline) - time.monotonic()))
        return self._next_look <= deadline

    def _pause_seconds(self) -> float:
        """How long to wait for another look: each costs a millisecond or more, whatever it brings."""
        if not self._idle_pause_seconds:
            return 0.0
        quiet_seconds = time.monotonic() - self._last_came
        return max(self._idle_pause_seconds, min(LONGEST_PAUSE_SECONDS, quiet_seconds / 10))

    @property
    def is_away(self) -> bool:
        """Whether the broker was last found to be away."""
        return self._outage.is_on

    def positions(self) -> Offsets:
        """The next offset to read, of every partition of this rank."""
        return dict(self._positions)

    def is_behind(self, at: TopicPartition) -> bool:
        """Whether the log is known to go on beyond what was read of a partition; it asks nobody."""
        end: int | None = self._consumer.highwater(KafkaPartition(*at))
        return end is not None and self._read_up_to(at) < end

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Reads nothing of these partitions, and of all others again, until the next call."""
        held = {KafkaPartition(*at) for at in partitions}
        if held != self._held:
            self._consumer.resume(*(self._held - held))
            self._consumer.pause(*(held - self._held))
            self._held = held

    def end_offsets(self, timeout_seconds: float = 10.0) -> Offsets:
        """Where each partition ends now.

        Raises:
            BrokerUnreachableError: If no broker answers in time.
        """
        try:
            return _plain(self._consumer.end_offsets(self._assigned, timeout_ms=int(timeout_seconds * 1000)))
        except KafkaError as error:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, str(error)) from error

    def lag(self, timeout_seconds: float = 10.0) -> Offsets:
        """How many offsets are still to be read, of every partition.

        Raises:
            BrokerUnreachableError: If no broker answers in time.
        """
        return {at: max(0, end - self._read_up_to(at)) for at, end in self.end_offsets(timeout_seconds).items()}

    def commit(self, offsets: Offsets) -> None:
        """Records offsets under the group, for tools that show the lag. A failure is logged, and does no harm."""
        if self._committer is not None and offsets:
            self._committer.commit(offsets)

    def close(self) -> None:
        """Lets go of the connections."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
        if self._committer is not None:
            self._committer.close()

    def _open(self) -> KafkaConsumer:
        return open_client(
            KafkaConsumer,
            self._connection,
            auto_offset_reset="none",  # a jump in the log is ours to report, not the client's to make
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            metadata_max_age_ms=60_000,
            metrics_enabled=False,
        )

    def _assign(self, rank: int, world_size: int) -> list[KafkaPartition]:
        existing = self._consumer.topics()  # asking for one topic by name would have some brokers create it
        assigned = []
        for topic in self._topics:
            if topic not in existing:
                raise TopicError(
                    f"topic {topic!r} does not exist, or may not be read; create it, for example with `ensure_topics`"
                )
            partitions = self._consumer.partitions_for_topic(topic)
            assigned += [KafkaPartition(topic, p) for p in sorted(partitions) if p % world_size == rank]
        self._consumer.assign(assigned)
        return assigned

    def _seek_all(self, start: Offsets | Literal["earliest", "latest"]) -> Offsets:
        starts, ends = self._bounds(LOOKUP_TIMEOUT_MS)
        if start == "latest":
            wanted = ends
        elif start == "earliest":
            wanted = starts
        else:
            wanted = starts | {at: offset for at, offset in start.items() if at in starts}
        return {at: self._seek(at, wanted[at], wanted[at], starts[at], ends[at]) for at in starts}

    def _seek(self, at: TopicPartition, wanted: int, target: int, log_start: int, log_end: int) -> int:
        """Seeks to a target, or to the nearest that the log has; if that is not what was wanted, the gap is told."""
        resumed = min(max(target, log_start), log_end)
        if resumed != wanted:
            gap = Gap(*at, wanted=wanted, resumed=resumed, log_start=log_start, log_end=log_end)
            self.gaps.append(gap)
            log.warning("log_gap", **asdict(gap))
        self._consumer.seek(KafkaPartition(*at), resumed)
        return resumed

    def _bounds(self, timeout_ms: int) -> tuple[Offsets, Offsets]:
        try:
            starts = self._consumer.beginning_offsets(self._assigned, timeout_ms=timeout_ms)
            ends = self._consumer.end_offsets(self._assigned, timeout_ms=timeout_ms)
        except KafkaError as error:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, str(error)) from error
        return _plain(starts), _plain(ends)

    def _poll_once(self, timeout_seconds: float, max_records: int) -> list[Record]:
        timeout_ms = 0 if self._idle_pause_seconds else int(timeout_seconds * 1000)
        self._unpark()
        try:
            fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        except OffsetOutOfRangeError:
            self._realign(self._positions)
            return []
        except LogTruncationError as error:
            self._realign(self._positions | _divergence(error))
            return []
        except RetriableError as error:
            self._go_back()
            self._noticed(str(error))
            return []
        except KafkaError as error:
            raise ConsumeError(f"{self._topics} cannot be read: {error}; check the rights and the disks") from error
        return self._in_order(fetched)

    def _go_back(self) -> None:
        """Has the client read again what it took out of its buffers before it failed: it will not hand that out."""
        for at, position in self._positions.items():
            self._consumer.seek(KafkaPartition(*at), position)

    def _unpark(self) -> None:
        """Have the client go on with what it had fetched of a partition when that was held.

        kafka-python 3.0.12 puts it aside, and takes it up again only while `_next_partition_records` is None; which it
        is not once anything was read, exhausted or not. Without this a partition once held may never be read again.
        """
        fetcher = self._consumer._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None

    def _in_order(self, fetched: dict[KafkaPartition, list[Any]]) -> list[Record]:
        records: list[Record] = []
        for partition in self._assigned:  # in the order of topics and partitions
            batch = fetched.get(partition)
            if batch:
                topic, number = partition
                records += [Record(topic, number, r.offset, r.key, r.value, r.timestamp) for r in batch]
                self._positions[topic, number] = batch[-1].offset + 1
        return records

    def _check(self) -> None:
        """Asks, when nothing comes, whether the broker is there and its log still reaches to where we are.

        The client hides a lost broker; and the embedded broker answers beyond its end with silence.
        """
        if time.monotonic() < self._next_check:
            return
        try:
            ends = _plain(self._consumer.end_offsets(self._assigned, timeout_ms=CHECK_TIMEOUT_MS))
        except KafkaError as error:
            self._noticed(str(error))
            return
        self._outage.over()
        self._next_check = time.monotonic() + CHECK_SECONDS
        if any(position > ends[at] for at, position in self._positions.items()):
            self._realign(self._positions)
        self._notice_stall(ends)

    def _notice_stall(self, ends: Offsets) -> None:
        """Goes on with a new client when the log holds records and this one, its broker there, brings none."""
        unread = {
            at for at, end in ends.items() if KafkaPartition(*at) not in self._held and self._read_up_to(at) < end
        }
        self._unread_checks = self._unread_checks + 1 if unread else 0
        if self._unread_checks < STALLED_CHECKS:
            return
        log.warning("consumer_stalled", unread=sorted(unread), checks=STALLED_CHECKS, goes_on="with a new connection")
        try:
            stuck, self._consumer = self._consumer, self._open()
        except BrokerUnreachableError as error:
            self._noticed(error.reason)
            return
        stuck.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
        self._unread_checks = 0
        self._consumer.assign(self._assigned)
        for at, position in self._positions.items():
            self._consumer.seek(KafkaPartition(*at), position)
        self._consumer.pause(*self._held)

    def _realign(self, wanted: Offsets) -> None:
        """Moves positions that the log does not have, or no longer, to the nearest that it has."""
        try:
            starts, ends = self._bounds(CHECK_TIMEOUT_MS)
        except BrokerUnreachableError as error:
            self._noticed(error.reason)
            return
        self._outage.over()
        for at, position in self._positions.items():
            if wanted[at] != position or not starts[at] <= position <= ends[at]:
                self._positions[at] = self._seek(at, position, min(wanted[at], ends[at]), starts[at], ends[at])

    def _noticed(self, reason: str) -> None:
        self._next_check = time.monotonic() + self._outage.noticed(reason)

    def _read_up_to(self, at: TopicPartition) -> int:
        """The client's own position: it passes over the markers of transactions, which are no records."""
        position: int | None = self._consumer.position(KafkaPartition(*at), timeout_ms=0)
        return max(position or 0, self._positions[at])


class _Outage:
    """One line when the broker is lost, one when it is back, and the pauses between."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._began: float | None = None
        self._misses = 0
        self._pauses = backoff_seconds()

    @property
    def is_on(self) -> bool:
        """Whether it is sure, and not over."""
        return self._began is not None

    def noticed(self, reason: str) -> float:
        """Says so once it is sure, and gives the seconds to wait until the next look."""
        self._misses += 1
        if self._began is None:
            refused = refusal(self._connection)
            if refused is None and self._misses == 1:  # slow, for once
                return FIRST_BACKOFF_SECONDS
            self._began = time.monotonic()
            self._pauses = backoff_seconds()
            error = BrokerUnreachableError(self._connection.bootstrap_servers, refused or reason)
            log.warning("kafka_lost", problem=str(error), retry="until it answers")
        return next(self._pauses)

    def over(self) -> None:
        self._misses = 0
        if self._began is not None:
            away_seconds = round(time.monotonic() - self._began, 1)
            log.info("kafka_back", bootstrap_servers=self._connection.bootstrap_servers, away_seconds=away_seconds)
            self._began = None


def _plain(offsets: dict[KafkaPartition, int]) -> Offsets:
    return {(partition.topic, partition.partition): offset for partition, offset in offsets.items()}


def _divergence(error: LogTruncationError) -> Offsets:
    return {(at.topic, at.partition): to.offset for at, to in error.divergent_offsets.items() if to is not None}
