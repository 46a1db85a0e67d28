"""Writes shoppers' states to Redis as the log goes on, for all scorers. One writes, others stand by."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import structlog

from services.metrics.state_writer import StateWriterMetrics
from services.secrets import describe_mismatch
from services.state.entries import pack_entry
from services.state.errors import StateConflictError, StateError
from services.state.store import LEASE_SECONDS, Changes, StateStore
from streams.clocks import ClockSettings, ReaderClock, decode_bounded
from streams.connection import KafkaConnection, backoff_seconds, wait_for_broker
from streams.consumer import PartitionConsumer
from streams.control import Forget, Secret, SecretReset, parse_control
from streams.dead_letters import DeadLetter
from streams.errors import (
    ConsumeError,
    HeadwaterStreamError,
    MissingTopicError,
    SecretError,
    SecretMismatchError,
    TopicError,
)
from streams.events import Click, Purchase
from streams.offsets import Offsets
from streams.record import Record
from streams.start_offsets import start_offsets
from streams.topics import Topics
from streams.whole_topic import read_to_end

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
MAX_RECORDS = 1_000  # in one transaction
BEAT_SECONDS = 1.0


class StateWriter:
    """Reads clicks, purchases and what is to be forgotten; what they change goes to Redis with their offsets.

    Args:
        connection: Which Kafka.
        topics: The names of the topics.
        store: Where to write.
        look_back_events: Newest clicks and purchases to begin with where the store is empty.
        pseudonymise: What becomes of ids of users and sessions.
        metrics: Where to count.
        clock: How far times may be ahead of this machine's clock.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        store: StateStore,
        *,
        look_back_events: int,
        pseudonymise: Callable[[str], str],
        metrics: StateWriterMetrics,
        clock: ClockSettings = ClockSettings(),  # noqa: B008  # frozen
    ) -> None:
        self._clock_settings = clock
        self._connection, self._topics, self._store = connection, topics, store
        self._look_back_events, self._pseudonymise, self._metrics = look_back_events, pseudonymise, metrics
        self._forgotten: dict[str, int] = {}  # who, and up to when in the log's time, epoch ms
        self._agreed: str | None = None  # fingerprint of the deployment's secret
        self._name = secrets.token_hex(8)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Write until stopped; what fails is tried again from what the store has."""
        pauses, told = backoff_seconds(), None
        while not self._stop.is_set():
            try:
                if self._claimed() and wait_for_broker(self._connection, stop=self._stop):
                    self._follow()
            except SecretError:
                raise
            except StateConflictError as error:
                log.info("state_taken", reason=str(error))
            except (StateError, HeadwaterStreamError) as error:
                self._metrics.write_failed()
                if str(error) != told:
                    log.warning("state_not_written", problem=str(error), retry="until it can be")
                told = str(error)
                self._stop.wait(next(pauses))
            else:
                pauses, told = backoff_seconds(), None
        with suppress(StateError):
            self._store.release(self._name)

    def _claimed(self) -> bool:
        """Wait for the turn to write; False when stopped."""
        while not self._store.claim(self._name):
            self._metrics.show_writing(writing=False)
            if self._stop.wait(LEASE_SECONDS / 5):
                return False
        return not self._stop.is_set()

    def _follow(self) -> None:
        """Read and write for as long as the turn lasts."""
        held, topic_ids = self._store.offsets(), self._store.topic_ids()
        behaviour = self._behaviour()
        start = held
        if not held:
            start, topic_ids = start_offsets(self._connection, behaviour, self._look_back_events)
        log.info("state_writing", first_time=not held, partitions=len(start))
        self._learn_forgotten()
        topics = [self._topics.control, *behaviour]
        try:
            self._write_all(topics, start, topic_ids, held)
        finally:
            self._metrics.show_writing(writing=False)

    def _write_all(self, topics: list[str], start: Offsets, topic_ids: dict[str, str], held: Offsets) -> None:
        """Write what comes, for as long as the turn lasts.

        Args:
            topics: which to read.
            start: the next offset of each partition.
            topic_ids: the logs that `start` belongs to.
            held: the offsets that the store has.
        """
        beat_at = 0.0
        with closing(PartitionConsumer(self._connection, topics, start=start, topic_ids=topic_ids)) as consumer:
            while not self._stop.is_set() and self._store.claim(self._name):
                self._metrics.show_writing(writing=True)
                records = consumer.poll(POLL_SECONDS, MAX_RECORDS)
                if records or time.monotonic() >= beat_at:
                    held = self._write(records, held, consumer)
                    self._metrics.show_topics(topics, consumer.problems())
                    beat_at = time.monotonic() + BEAT_SECONDS

    def _behaviour(self) -> list[str]:
        """The topics that tell what shoppers do."""
        return list(dict.fromkeys([self._topics.clicks, self._topics.purchases, *self._topics.dialects]))

    def _learn_forgotten(self) -> None:
        """Read the control topic to its end, so that no event of a shopper is written that is to be forgotten.

        A topic that does not exist names nobody; one that exists and cannot be read is waited for.

        Raises:
            TopicError: the control topic exists and cannot be read.
            SecretMismatchError: the deployment uses another secret.
        """
        clock = ReaderClock.from_records((), self._clock_settings)
        try:
            for record in read_to_end(self._connection, self._topics.control):
                command = parse_control(clock.bound_record(record))
                if isinstance(command, Forget):
                    self._forgotten[command.user] = command.ts_ms
                elif isinstance(command, Secret | SecretReset):
                    self._agreed = command.fingerprint if isinstance(command, Secret) else None
        except MissingTopicError as error:  # nobody is to be forgotten yet; it is read once it exists
            log.warning("control_missing", problem=str(error))
        except (TopicError, ConsumeError) as error:
            self._metrics.show_topics([self._topics.control], [self._topics.control])
            raise TopicError(
                f"no shopper's events are written before topic {self._topics.control!r} was read, which says who is to "
                f"be forgotten: {error}"
            ) from error
        problem = describe_mismatch(self._store.fingerprint, self._agreed, source=f"the topic {self._topics.control}")
        if problem is not None:
            raise SecretMismatchError(problem)

    def _write(self, records: Sequence[Record], held: Offsets, consumer: PartitionConsumer) -> Offsets:
        """Write what records change; the offsets that the store has then."""
        changes, taken, newest_ms = Changes(), Counter[str](), 0
        clock = ReaderClock.from_records(records, self._clock_settings)
        for record in records:
            newest_ms = max(newest_ms, self._take_in(record, clock, changes, taken))
        positions = consumer.positions()
        followed = {topic for topic, _ in positions}  # of a topic that was recreated, no old partition stays
        after = {at: offset for at, offset in held.items() if at[0] not in followed} | positions
        began = time.perf_counter()
        self._store.write(changes, before=held, after=after, beat=secrets.token_hex(8), topic_ids=consumer.topic_ids())
        if records:
            self._metrics.transaction_took(time.perf_counter() - began)
        self._metrics.events_written(taken, newest_ms=newest_ms)
        return after

    def _take_in(self, record: Record, clock: ReaderClock, changes: Changes, taken: Counter[str]) -> int:
        """Add what a record changes; the event time of what it holds, 0 where that is nothing of a shopper's."""
        if record.topic == self._topics.control:
            command = parse_control(clock.bound_record(record))
            if isinstance(command, Forget):
                self._forgotten[command.user] = command.ts_ms
                changes.forget(command.user)
            return 0
        record, decoded, _ = decode_bounded(record, self._topics, clock)
        newest_ms = 0
        for event in () if isinstance(decoded, DeadLetter) else decoded:  # dead letters are the updater's to report
            if isinstance(event, Click | Purchase):
                publish_ts_ms = clock.publish_ts_ms(record)
                newest_ms = max(newest_ms, min(event.ts, publish_ts_ms))
                taken[self._add(event, publish_ts_ms, changes)] += 1
        return newest_ms

    def _add(self, event: Click | Purchase, publish_ts_ms: int, changes: Changes) -> str:
        """Add an event to its shopper's list; what became of it."""
        user_id = self._pseudonymise(event.user_id)
        if publish_ts_ms <= self._forgotten.get(user_id, -1):
            return "forgotten"
        entry = pack_entry(event, publish_ts_ms=publish_ts_ms, pseudonymise=self._pseudonymise)
        changes.add(user_id, entry, is_purchase=isinstance(event, Purchase))
        return event.KIND
