"""What waits in the spool goes to Kafka, in order, and leaves the spool once Kafka has it."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from services.collector.spool import Spool, SpoolError, Waiting
from services.metrics.collector import CollectorMetrics
from streams.connection import KafkaConnection, backoff_seconds, bootstrap_problem
from streams.errors import BrokerUnreachableError, DeliveryError, HeadwaterStreamError
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics
from streams.topics import Topics

CHUNK_EVENTS = 1_000
CHUNK_BYTES = 1024 * 1024  # few enough for a slow line to confirm in time
CONFIRM_SECONDS = 10.0  # a leader that is elected sooner costs no repeats
CONFIRM_STEP_SECONDS = 1.0  # a broker that is back sooner is not worth a word
IDLE_PROBE_SECONDS = 5.0
END_SECONDS = 5.0  # beyond the grace, for the thread to let go of its connection

log = structlog.get_logger(__name__)


class Forwarder:
    """Sends from a thread of its own: one connection until it fails, then another one.

    A chunk is taken from the head of the spool, sent, confirmed by all replicas, and removed; only then comes the next.
    What fails is sent again from the head of the chunk, so that the first copies of all events arrive in order. A chunk
    that was confirmed and cannot be removed, as on a full disk, is not sent again: forwarding pauses until it can.

    Args:
        spool: Where events wait.
        connection: Which Kafka.
        topics: The names of the topics; those missing are created.
        metrics: Where confirmed events are counted.

    Attributes:
        problem: Why nothing goes out at present; None when it does.
        waits_for_disk: Whether it is the spool's disk that fails, not the broker.
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
        self._sent: Sequence[Waiting] = ()  # confirmed by the broker, and still in the spool

    def wake(self) -> None:
        """Has it look into the spool now."""
        self._arrived.set()

    @contextmanager
    def running(self, *, grace_seconds: float) -> Iterator[None]:
        """Forwards for as long as the context lasts, and a little longer if that empties the spool.

        Args:
            grace_seconds: How much longer at most. With the broker away nothing is waited for.
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
        """Forwards until ended; what fails is tried again."""
        while not self._done():
            self.waits_for_disk = False
            try:
                self._forward()
            except SpoolError as error:
                self.waits_for_disk = True
                self._note_stopped(str(error))
            except HeadwaterStreamError as error:
                self._note_stopped(str(error))
            except Exception as error:  # whatever it is, accepted events must not wait behind a dead thread
                log.exception("forwarder_failed")
                self._note_stopped(f"internal error: {type(error).__name__}")
            if self.problem is not None and self._ending.wait(next(self._pauses)):
                return

    def _forward(self) -> None:
        """Sends over one connection until ended, or until it fails."""
        producer = EventProducer(self._connection, self._topics)
        try:
            ensure_topics(self._connection, self._topics)
            while not self._done():
                self._arrived.clear()
                self._remove_sent()
                waiting = self._spool.oldest(max_events=CHUNK_EVENTS, max_bytes=CHUNK_BYTES)
                if waiting:
                    self._deliver(producer, waiting)
                self._note_flowing()
                if not waiting:
                    self._idle()
        finally:
            with suppress(DeliveryError):  # already reported; the events still wait
                producer.close(0)

    def _deliver(self, producer: EventProducer, waiting: Sequence[Waiting]) -> None:
        """Sends a chunk, 1. to the broker, 2. confirmed, 3. out of the spool."""
        for _, event in waiting:
            producer.send_raw(self._topics.of_kind(event.kind), event.key, event.value)
        self._confirm(producer)
        self._sent = waiting
        self._metrics.events_forwarded(Counter(entry.event.kind for entry in waiting))
        self._remove_sent()

    def _remove_sent(self) -> None:
        """Removes what the broker has confirmed. If the disk refuses, the next try comes before anything else."""
        if self._sent:
            self._spool.remove_through(self._sent)
            self._sent = ()

    def _confirm(self, producer: EventProducer) -> None:
        """Waits for the broker's word on a chunk for as long as somebody is there to give it."""
        give_up = time.monotonic() + CONFIRM_SECONDS
        while True:
            try:
                return producer.flush(CONFIRM_STEP_SECONDS)
            except DeliveryError as error:
                if error.failures or time.monotonic() > min(give_up, self._deadline):
                    raise
            self._require_broker()

    def _idle(self) -> None:
        """Waits for events; every so often it looks whether the broker is there, so that health can say so."""
        if not self._arrived.wait(IDLE_PROBE_SECONDS):
            self._require_broker()

    def _require_broker(self) -> None:
        refused = bootstrap_problem(self._connection)
        if refused is not None:
            raise BrokerUnreachableError(self._connection.bootstrap_servers, refused)

    def _done(self) -> bool:
        return self._ending.is_set() and (not len(self._spool) or time.monotonic() > self._deadline)

    def _note_stopped(self, problem: str) -> None:
        """One line when nothing goes out any more, however often it is tried."""
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
        """One line when it works again."""
        self.problem = None
        if self._stopped_at is not None:
            after_seconds = round(time.monotonic() - self._stopped_at, 1)
            log.info("forwarding_resumed", after_seconds=after_seconds, waiting_events=len(self._spool))
            self._stopped_at = None
            self._pauses = backoff_seconds()
