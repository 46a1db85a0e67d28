"""Reads a group of topics to their end, then follows them; after a failure it resumes where it stopped."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog

from streams.connection import KafkaConnection, backoff_seconds, wait_for_broker
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.offsets import Offsets, topic_of
from streams.record import Record

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
MAX_RECORDS = 1_000


class TopicReader:
    """Reads a group of topics in one thread, with a consumer of its own, so that no other group delays it.

    Args:
        connection: the connection to Kafka.
        topics: the topics to follow.
        process: called with the records of each poll.
        stop: ends the reading when set.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Sequence[str],
        *,
        process: Callable[[Sequence[Record]], None],
        stop: threading.Event,
    ) -> None:
        self.topics = tuple(topics)
        self._connection, self._process, self._stop = connection, process, stop
        self._positions: Offsets = {}
        self._topic_ids: dict[str, str] = {}  # the logs that the positions belong to
        self._consumer: PartitionConsumer | None = None

    @property
    def topic_ids(self) -> Mapping[str, str]:
        """The ids of the logs that are read, by topic."""
        return self._topic_ids

    @property
    def is_reading(self) -> bool:
        """True while the broker answers."""
        consumer = self._consumer
        return consumer is not None and not consumer.is_broker_lost

    def problem(self) -> str | None:
        """Return the reason why Kafka cannot be read, or None. Addresses are for the log of the process alone."""
        consumer = self._consumer
        if consumer is None:
            return "Kafka cannot be read; what has been read of it is served, and the log of the process says why"
        return "Kafka does not answer; what has been read of it is served" if consumer.is_broker_lost else None

    def topic_problems(self) -> dict[str, str]:
        """Return the problems of reading, by topic or `topic/partition`. Safe to call from another thread."""
        consumer = self._consumer
        if consumer is None or consumer.is_broker_lost:
            return {}
        silent = self.topics if consumer.is_unanswered else ()
        return consumer.problems() | {
            topic: f"topic {topic!r} is not being read, since its broker does not answer; what has been read of it is "
            "served; start the broker"
            for topic in silent
        }

    def start_at(self, positions: Offsets, topic_ids: Mapping[str, str]) -> None:
        """Set the start offsets; partitions that are not named start at their first record."""
        self._positions |= positions
        self._topic_ids |= topic_ids

    def run(self, read: Callable[[], None], *, failed: Callable[[], None] = lambda: None) -> None:
        """Call a function that opens and reads the topics, until stopped.

        Args:
            read: the function to call, again after each error.
            failed: called after each error.
        """
        pauses, known = backoff_seconds(), None
        while not self._stop.is_set():
            try:
                if wait_for_broker(self._connection, stop=self._stop):
                    read()
            except HeadwaterStreamError as error:
                if str(error) != known:
                    log.warning("log_not_read", topics=self.topics, problem=str(error), retry="until it can be read")
                known = str(error)
                failed()
            except Exception:  # a bug of ours: the models and states in memory stay in service
                log.exception("log_reader_failed", topics=self.topics)
                failed()
            self._stop.wait(next(pauses))

    @contextmanager
    def opened(self, topics: Sequence[str]) -> Iterator[PartitionConsumer]:
        """Open some of the topics at the positions where reading stopped.

        Raises:
            BrokerUnreachableError: no broker answers.
        """
        consumer = PartitionConsumer(self._connection, topics, start=self._positions, topic_ids=self._topic_ids)
        try:
            self._consumer = consumer
            yield consumer
        finally:
            self._consumer = None
            consumer.close()

    def read_to_end(self, consumer: PartitionConsumer, *, required: Sequence[str] = ()) -> None:
        """Read up to the present end of the topics; a topic that cannot be read is skipped.

        Args:
            consumer: an open consumer.
            required: topics to wait for instead of skipping them.
        """
        while not self._stop.is_set() and self._lacks(consumer, required):
            self.poll(consumer)
        ends = consumer.end_offsets()
        while not self._stop.is_set() and (not consumer.has_reached(ends) or self._lacks(consumer, required)):
            self.poll(consumer)

    def follow(self, consumer: PartitionConsumer) -> None:
        """Read new records until stopped."""
        while not self._stop.is_set():
            self.poll(consumer)

    def poll(self, consumer: PartitionConsumer) -> None:
        """Process the records that are available."""
        records = consumer.poll(POLL_SECONDS, MAX_RECORDS)
        self._topic_ids |= consumer.topic_ids()
        self._process(records)
        read = {topic for topic, _ in consumer.positions()}
        kept = {at: offset for at, offset in self._positions.items() if at[0] not in read}
        self._positions = kept | consumer.positions()

    def _lacks(self, consumer: PartitionConsumer, required: Sequence[str]) -> bool:
        return any(topic_of(name) in required for name in consumer.problems())
