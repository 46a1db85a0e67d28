"""Producer SDK: idempotent, acknowledged by all replicas, in order for each key.

with EventProducer(KafkaConnection(bootstrap_servers="127.0.0.1:9092")) as producer:
    producer.send(Click(event_id="e-1", ts="2026-01-31T09:00:00Z", user_id="u-1", item_id="i-1"))
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from streams.connection import KafkaConnection, open_client
from streams.delivery import Delivery
from streams.errors import DeliveryError, EventTooLargeError, error_text
from streams.events import Event
from streams.topics import MISSING_REMEDY, Topics

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 1024 * 1024
MAX_PENDING_BYTES = 32 * 1024 * 1024
METADATA_TIMEOUT_MS = 30_000
CLOSE_TIMEOUT_SECONDS = 10.0
SHOWN_FAILURES = 3


class EventProducer:
    """A producer of events, each on the topic of its kind, keyed by user (items by item).

    While the broker is lost, records are sent again for up to two minutes. If it rejects a record permanently (no right
    to write, too large for its topic), the client fails all pending and later records: `flush` raises, and a new
    producer is needed.

    Args:
        connection: the brokers to write to.
        topics: the names of the topics.
        on_delivery: called once per record from the client's thread, in the order of confirmation; it must be quick
            and must not send.
        max_record_bytes: the size beyond which a record is rejected at once.
        metadata_timeout_seconds: the longest time that a record waits for the metadata of its topic.

    Attributes:
        delivered: the number of records that the broker confirmed.
        failed: the number of records that failed.

    Raises:
        BrokerUnreachableError: if no broker answers.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics | None = None,
        *,
        on_delivery: Callable[[Delivery], None] | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
        metadata_timeout_seconds: float | None = None,
    ) -> None:
        timeout_ms = METADATA_TIMEOUT_MS if metadata_timeout_seconds is None else int(metadata_timeout_seconds * 1000)
        self.delivered = 0
        self.failed = 0
        self._topics = topics or Topics()
        self._on_delivery = on_delivery
        self._failures: list[Delivery] = []
        self._pending: Counter[str] = Counter()  # records, by topic; none is 0
        self._pending_bytes = 0
        self._changed = threading.Condition()
        self._producer = open_client(
            KafkaProducer,
            connection,
            enable_idempotence=True,
            acks="all",
            linger_ms=5,
            batch_size=64 * 1024,
            max_block_ms=timeout_ms,
            max_request_size=max_record_bytes,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def send(self, event: Event) -> None:
        """Send one event; block only while too many bytes are unconfirmed.

        Raises:
            EventTooLargeError: if the event is larger than a broker accepts.
            DeliveryError: if the topic does not accept records.
        """
        value = event.model_dump_json(exclude_none=True).encode()
        self._send(self._topics.of_kind(event.KIND), event.key().encode(), value, event)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        """Send bytes as they are: to replay a rejected record, or to remove an item (its key, no value).

        Raises:
            EventTooLargeError: if the value is larger than a broker accepts.
            DeliveryError: if the topic does not accept records.
        """
        self._send(topic, key, value, None)

    def flush(self, timeout_seconds: float | None = None) -> None:
        """Wait until the broker has answered for every record that was sent.

        Raises:
            DeliveryError: if records failed since the last flush, or it takes longer than `timeout_seconds`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._pending, timeout_seconds):
                raise DeliveryError(_unconfirmed(self._pending, timeout_seconds))
            failures, self._failures = self._failures, []
        if failures:
            raise DeliveryError(_summary(failures), failures)

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Flush and close the connection; closing twice is allowed.

        Raises:
            DeliveryError: if a record was not confirmed.
        """
        try:
            self.flush(timeout_seconds)
        finally:
            self._close_client()

    def __enter__(self) -> Self:
        """Return the producer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the producer; raise a failed delivery, unless another exception is active."""
        try:
            self.close()
        except DeliveryError as failure:
            if error is None:
                raise
            log.error("events_not_delivered", problem=str(failure))  # the active exception is more informative

    def _send(self, topic: str, key: bytes | None, value: bytes | None, event: Event | None) -> None:
        size_bytes = len(key or b"") + len(value or b"")
        self._reserve(topic, size_bytes)
        try:
            future = self._producer.send(topic, key=key, value=value)
        except (KafkaError, ValueError) as error:
            self._finish(Delivery(event, topic, None, None, None, error), size_bytes, raised=True)
            raise _send_error(topic, error) from error
        future.add_callback(self._confirmed, event, size_bytes)
        future.add_errback(self._failed, event, topic, size_bytes)

    def _close_client(self) -> None:
        try:
            self._producer.close(timeout=0 if self._pending else CLOSE_TIMEOUT_SECONDS)
        except KafkaTimeoutError:  # it does not close while records are unconfirmed; these fail and are counted
            self._producer._sender.force_close()
            self._producer._sender.join(CLOSE_TIMEOUT_SECONDS)

    def _reserve(self, topic: str, size_bytes: int) -> None:
        """Block while too many bytes are unconfirmed: the client itself buffers without a limit."""
        with self._changed:
            while self._pending_bytes and self._pending_bytes + size_bytes > MAX_PENDING_BYTES:
                self._changed.wait()
            self._pending_bytes += size_bytes
            self._pending[topic] += 1

    def _confirmed(self, event: Event | None, size_bytes: int, metadata: Any) -> None:
        delivery = Delivery(event, metadata.topic, metadata.partition, metadata.offset, metadata.timestamp, None)
        self._finish(delivery, size_bytes)

    def _failed(self, event: Event | None, topic: str, size_bytes: int, error: Exception) -> None:
        self._finish(Delivery(event, topic, None, None, None, error), size_bytes)

    def _finish(self, delivery: Delivery, size_bytes: int, *, raised: bool = False) -> None:
        with self._changed:
            self._pending_bytes -= size_bytes
            self._pending[delivery.topic] -= 1
            if not self._pending[delivery.topic]:
                del self._pending[delivery.topic]
            self.delivered += delivery.error is None
            self.failed += delivery.error is not None
            if delivery.error is not None and not raised:
                self._failures.append(delivery)
            self._changed.notify_all()
        if self._on_delivery is not None:
            try:
                self._on_delivery(delivery)
            except Exception:
                log.exception("on_delivery_failed")  # raised in the client's thread, it would go unnoticed


def _send_error(topic: str, error: Exception) -> DeliveryError:
    if isinstance(error, MessageSizeTooLargeError):
        return EventTooLargeError(f"an event must fit into one record: {error}; shorten its texts")
    return DeliveryError(
        f"topic {topic!r} takes no records: {error_text(error)}; if it does not exist, {MISSING_REMEDY}; else check "
        "the rights on it and its brokers"
    )


def _unconfirmed(pending: Mapping[str, int], timeout_seconds: float | None) -> str:
    topics = ", ".join(f"{records} of topic {topic!r}" for topic, records in sorted(pending.items()))
    return (
        f"{sum(pending.values())} records not confirmed within {timeout_seconds} s: {topics}; check that its brokers "
        "run, and that enough replicas are in sync"
    )


def _summary(failures: list[Delivery]) -> str:
    causes = [(failure.topic, failure.error) for failure in failures if failure.error is not None]
    shown = "; ".join(f"{topic}: {error_text(error)}" for topic, error in causes[:SHOWN_FAILURES])
    more = f" and {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
    return f"{len(failures)} records not delivered: {shown}{more}"
