"""The writer of shoppers' states to Redis, for all scorers. One process writes, others stand by."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
HEARTBEAT_SECONDS = 1.0


class StateWriter:
    """Writer of clicks, purchases and requests to forget to Redis, together with their offsets.

    Args:
        connection: the Kafka cluster.
        topics: the names of the topics.
        store: the store to write to.
        look_back_events: the number of newest clicks and purchases to start from if the store is empty.
        pseudonymise: the function that hides ids of users and sessions.
        metrics: the metrics of the process.
        clock: the settings of how far times may be ahead of this machine's clock.
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
        self._forgotten: dict[str, Forget] = {}  # by pseudonym
        self._agreed: str | None = None  # fingerprint of the deployment's secret
        self._name = secrets.token_hex(8)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Write until stopped; after a failure, start again from the offsets in the store."""
        pauses, reported = backoff_seconds(), None
        while not self._stop.is_set():
            try:
                if self._wait_for_lease() and wait_for_broker(self._connection, stop=self._stop):
                    self._write_until_stopped()
            except SecretError:
                raise
            except StateConflictError as error:
                log.info("state_taken", reason=str(error))
            except (StateError, HeadwaterStreamError) as error:
                self._metrics.write_failed()
                if str(error) != reported:
                    log.warning("state_not_written", problem=str(error), retry="until it can be")
                reported = str(error)
                self._stop.wait(next(pauses))
            else:
                pauses, reported = backoff_seconds(), None
        with suppress(StateError):
            self._store.release(self._name)

    def _wait_for_lease(self) -> bool:
        """Wait until this process holds the lease; return False if stopped."""
        while not self._store.claim(self._name):
            self._metrics.show_writing(writing=False)
            if self._stop.wait(LEASE_SECONDS / 5):
                return False
        return not self._stop.is_set()

    def _write_until_stopped(self) -> None:
        """Read the log and write its changes for as long as the lease lasts."""
        stored, topic_ids = self._store.offsets(), self._store.topic_ids()
        event_topics = self._event_topics()
        start = stored
        if not stored:
            start, topic_ids = start_offsets(self._connection, event_topics, self._look_back_events)
        log.info("state_writing", first_time=not stored, partitions=len(start))
        self._read_control()
        topics = [self._topics.control, *event_topics]
        try:
            self._write_all(topics, start, topic_ids, stored)
        finally:
            self._metrics.show_writing(writing=False)

    def _write_all(self, topics: list[str], start: Offsets, topic_ids: dict[str, str], stored: Offsets) -> None:
        """Write changes for as long as the lease lasts.

        Args:
            topics: the topics to read.
            start: the next offset of each partition.
            topic_ids: the ids of the topics that `start` belongs to.
            stored: the offsets in the store.
        """
        heartbeat_at, gaps_seen = 0.0, 0
        with closing(PartitionConsumer(self._connection, topics, start=start, topic_ids=topic_ids)) as consumer:
            while not self._stop.is_set() and self._store.claim(self._name):
                self._metrics.show_writing(writing=True)
                records = consumer.poll(POLL_SECONDS, MAX_RECORDS)
                if records or time.monotonic() >= heartbeat_at:
                    stored = self._write(records, stored, consumer)
                    self._metrics.show_topics(topics, consumer.problems())
                    for gap in consumer.gaps[gaps_seen:]:
                        self._metrics.records_missed(gap.topic, gap.missed)
                    gaps_seen = len(consumer.gaps)
                    heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS

    def _event_topics(self) -> list[str]:
        """Return the topics of clicks and purchases."""
        return list(dict.fromkeys([self._topics.clicks, self._topics.purchases, *self._topics.dialects]))

    def _read_control(self) -> None:
        """Read the control topic to its end, so that no event of a forgotten shopper is written.

        A missing topic names nobody. An error of an existing topic is raised, so that reading is tried again.

        Raises:
            TopicError: the control topic exists and cannot be read.
            SecretMismatchError: the deployment uses another secret.
        """
        clock = ReaderClock.from_records((), self._clock_settings)
        try:
            for record in read_to_end(self._connection, self._topics.control):
                command = parse_control(clock.bound_record(record))
                if isinstance(command, Forget):
                    self._forgotten[command.user] = command
                elif isinstance(command, Secret | SecretReset):
                    self._agreed = command.fingerprint if isinstance(command, Secret) else None
        except MissingTopicError as error:  # nobody has been forgotten yet; the topic is read once it exists
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

    def _write(self, records: Sequence[Record], stored: Offsets, consumer: PartitionConsumer) -> Offsets:
        """Write the changes of records, and return the offsets in the store afterwards."""
        changes, outcomes, newest_ms = Changes(), Counter[str](), 0
        clock = ReaderClock.from_records(records, self._clock_settings)
        for record in records:
            newest_ms = max(newest_ms, self._process(record, clock, changes, outcomes, consumer.topic_ids()))
        positions = consumer.positions()
        followed = {topic for topic, _ in positions}  # drop old partitions of a recreated topic
        after = {at: offset for at, offset in stored.items() if at[0] not in followed} | positions
        began = time.perf_counter()
        self._store.write(
            changes, before=stored, after=after, heartbeat=secrets.token_hex(8), topic_ids=consumer.topic_ids()
        )
        if records:
            self._metrics.transaction_took(time.perf_counter() - began)
        self._metrics.events_written(outcomes, newest_ms=newest_ms)
        return after

    def _process(
        self,
        record: Record,
        clock: ReaderClock,
        changes: Changes,
        outcomes: Counter[str],
        topic_ids: Mapping[str, str],
    ) -> int:
        """Add the changes of a record, and return its newest event time; 0 if it has no event of a shopper."""
        if record.topic == self._topics.control:
            command = parse_control(clock.bound_record(record))
            if isinstance(command, Forget):
                self._forgotten[command.user] = command
                changes.forget(command.user)
            return 0
        record, decoded, _ = decode_bounded(record, self._topics, clock)
        newest_ms = 0
        for event in () if isinstance(decoded, DeadLetter) else decoded:  # the updater reports dead letters
            if isinstance(event, Click | Purchase):
                publish_ts_ms = clock.publish_ts_ms(record)
                newest_ms = max(newest_ms, min(event.ts, publish_ts_ms))
                command = self._forgotten.get(self._pseudonymise(event.user_id))
                if command and (publish_ts_ms <= command.ts_ms or command.covers(record, topic_ids)):
                    outcomes["forgotten"] += 1
                else:
                    outcomes[self._add(event, publish_ts_ms, changes)] += 1
        return newest_ms

    def _add(self, event: Click | Purchase, publish_ts_ms: int, changes: Changes) -> str:
        """Add an event to its shopper's list, and return its outcome."""
        user_id = self._pseudonymise(event.user_id)
        entry = pack_entry(event, publish_ts_ms=publish_ts_ms, pseudonymise=self._pseudonymise)
        changes.add(user_id, entry, is_purchase=isinstance(event, Purchase))
        return event.KIND
