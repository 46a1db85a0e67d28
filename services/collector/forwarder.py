"""Forwarding of spooled events to Kafka, in order; an event leaves the spool once Kafka has it."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from services.collector.spool import Spool, SpoolEntry, SpoolError
from services.metrics.collector import CollectorMetrics
from streams.connection import KafkaConnection, backoff_seconds, bootstrap_problem
from streams.errors import BrokerUnreachableError, DeliveryError, HeadwaterStreamError
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics
from streams.topics import Topics

CHUNK_EVENTS = 1_000
CHUNK_BYTES = 1024 * 1024  # small enough to be confirmed in time over a slow line
CONFIRM_SECONDS = 10.0  # a leader election that ends sooner causes no repeats
CONFIRM_STEP_SECONDS = 1.0  # a broker that is back sooner is not reported
IDLE_PROBE_SECONDS = 5.0
END_SECONDS = 5.0  # beyond the grace period, for the thread to close its connection

log = structlog.get_logger(__name__)


class Forwarder:
    """Forwarder of the spool to Kafka, in a thread of its own, over one connection until that fails.

    A chunk is read from the head of the spool, sent, confirmed by all replicas, and removed; then the next one follows.
    After a failure the chunk is sent again from its head, so that the first copies of all events arrive in order. A
    confirmed chunk that cannot be removed, as on a full disk, is not sent again: forwarding pauses until it can be.

    Args:
        spool: the queue of accepted events.
        connection: the connection options of the brokers.
        topics: the names of the topics, which are created if missing.
        metrics: the metrics that count confirmed events.

    Attributes:
        problem: the reason why nothing is sent at present; None while forwarding works.
        waits_for_disk: whether the spool's disk fails, and not the broker.
    """

    def __init__(self, spool: Spool, connection: KafkaConnection, topics: Topics, metrics: CollectorMetrics) -> None:
        self.problem: str | None = "not connected yet"
        self.waits_for_disk = False
        self._spool, self._connection, self._topics, self._metrics = spool, connection, topics, metrics
        self._arrived = threading.Event()
        self._ending = threading.Event()
        self._deadline = math.inf  # monotonic seconds
        self._stopped_at: float | None = None  # monotonic seconds
        self._pauses = backoff_seconds()
        self._sent: Sequence[SpoolEntry] = ()  # confirmed by the broker, and still in the spool

    def wake(self) -> None:
        """Make the thread read the spool now."""
        self._arrived.set()

    @contextmanager
    def running(self, *, grace_seconds: float) -> Iterator[None]:
        """Forward while the context lasts, and up to `grace_seconds` longer to empty the spool.

        Args:
            grace_seconds: the grace period at the end; it is skipped while the broker is away.
        """
        thread = threading.Thread(target=self.run, name="forwarder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._deadline = time.monotonic() + grace_seconds
            self._ending.set()
            self.wake()
            thread.join(grace_seconds + END_SECONDS)
            log.info("forwarding_ended", waiting_events=len(self._spool), problem=self.problem)

    def run(self) -> None:
        """Forward until ended, and retry after failures."""
        while not self._done():
            self.waits_for_disk = False
            try:
                self._forward()
            except SpoolError as error:
                self.waits_for_disk = True
                self._note_stopped(str(error))
            except HeadwaterStreamError as error:
                self._note_stopped(str(error))
            except Exception as error:  # after any error, accepted events must not wait for a dead thread
                log.exception("forwarder_failed")
                self._note_stopped(f"internal error: {type(error).__name__}")
            if self.problem is not None and self._ending.wait(next(self._pauses)):
                return

    def _forward(self) -> None:
        """Send over one connection until ended, or until it fails."""
        producer = EventProducer(self._connection, self._topics)
        try:
            ensure_topics(self._connection, self._topics)
            while not self._done():
                self._arrived.clear()
                self._remove_sent()
                entries = self._spool.oldest(max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES)
                if entries:
                    self._deliver(producer, entries)
                self._note_flowing()
                if not entries:
                    self._idle()
        finally:
            with suppress(DeliveryError):  # already reported; the events are still spooled
                producer.close(0)

    def _deliver(self, producer: EventProducer, entries: Sequence[SpoolEntry]) -> None:
        """Deliver a chunk: 1. send it, 2. wait for the confirmation, 3. remove it from the spool."""
        for _, record in entries:
            producer.send_raw(self._topics.of_kind(record.kind), record.key, record.value)
        self._confirm(producer)
        self._sent = entries
        self._metrics.events_forwarded(Counter(entry.record.kind for entry in entries))
        self._remove_sent()

    def _remove_sent(self) -> None:
        """Remove the confirmed chunk. If the disk refuses, the next attempt precedes everything else."""
        if self._sent:
            self._spool.remove_through(self._sent)
            self._sent = ()

    def _confirm(self, producer: EventProducer) -> None:
        """Wait until the broker confirms a chunk, as long as it answers."""
        deadline = time.monotonic() + CONFIRM_SECONDS
        while True:
            try:
                return producer.flush(CONFIRM_STEP_SECONDS)
            except DeliveryError as error:
                if error.failures or time.monotonic() > min(deadline, self._deadline):
                    raise
            self._require_broker()

    def _idle(self) -> None:
        """Wait for events; check the broker at intervals, so that `/readyz` can report it."""
        if not self._arrived.wait(IDLE_PROBE_SECONDS):
            self._require_broker()

    def _require_broker(self) -> None:
        refused = bootstrap_problem(self._connection)
        if refused is not None:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, refused)

    def _done(self) -> bool:
        return self._ending.is_set() and (not len(self._spool) or time.monotonic() > self._deadline)

    def _note_stopped(self, problem: str) -> None:
        """Log once that forwarding has stopped, however often it is retried."""
        self.problem = problem
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            log.warning(
                "forwarding_stopped",
                problem=problem,
                waiting_events=len(self._spool),
                retry="until it works; events wait in the spool",
            )

    def _note_flowing(self) -> None:
        """Log once that forwarding works again."""
        self.problem = None
        if self._stopped_at is not None:
            after_seconds = round(time.monotonic() - self._stopped_at, 1)
            log.info("forwarding_resumed", after_seconds=after_seconds, waiting_events=len(self._spool))
            self._stopped_at = None
            self._pauses = backoff_seconds()
