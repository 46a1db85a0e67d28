"""Announcements of the updater on Kafka: new adapters, quarantines and the guard's caps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from peft_adapters.registry.manifest import Manifest, manifest_bytes
from streams.connection import KafkaConnection
from streams.control import Capped, GuardReport, Quarantined, guard_record, quarantine_record
from streams.errors import BrokerUnreachableError, DeliveryError
from streams.producer import EventProducer
from streams.topics import Topics

_METADATA_SECONDS = 2.0  # a missing topic does not hold learning up for long
_CONFIRM_SECONDS = 10.0  # within the grace period that a process is given to end


class Announcer:
    """Publisher of the updater's own records on the topics `adapters` and `control`.

    The producer is opened at first use. After a failed delivery it is closed and opened again, since an idempotent
    producer delivers nothing more after a failure.

    Args:
        connection: the Kafka cluster.
        topics: the names of the topics.
    """

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self._connection, self._topics = connection, topics
        self._producer: EventProducer | None = None
        self._unpublished: list[Quarantined] = []
        self._reported_caps: tuple[Capped, ...] = ()

    def publish_adapter(self, manifest: Manifest) -> None:
        """Announce a published adapter, and wait for the broker's confirmation.

        Raises:
            BrokerUnreachableError: no broker answers.
            DeliveryError: the broker did not confirm the record in time.
        """
        self._publish(self._topics.adapters, [(manifest.scenario.encode(), manifest_bytes(manifest))])

    def publish_quarantined(self, quarantined: Sequence[Quarantined]) -> None:
        """Publish new quarantines and those that could not be delivered before, and wait for the confirmation.

        Raises:
            BrokerUnreachableError: no broker answers.
            DeliveryError: the broker did not confirm all records in time; they are kept for the next call.
        """
        self._unpublished += quarantined
        if self._unpublished:
            self._publish(self._topics.control, [quarantine_record(new.key, new.why) for new in self._unpublished])
            self._unpublished.clear()

    def report_caps(self, report: GuardReport) -> None:
        """Publish the guard's caps if they have changed, without waiting for a confirmation."""
        if report.caps == self._reported_caps:
            return
        with suppress(BrokerUnreachableError, DeliveryError):
            self._open().send_raw(self._topics.control, *guard_record(report))
            self._reported_caps = report.caps

    def close(self) -> None:
        """Send what waits, and close the producer.

        Raises:
            DeliveryError: the broker did not confirm all records.
        """
        if self._producer is not None:
            self._producer.close()

    def _publish(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        producer = self._open()
        try:
            for key, value in records:
                producer.send_raw(topic, key, value)
            producer.flush(timeout_seconds=_CONFIRM_SECONDS)
        except DeliveryError:
            with suppress(DeliveryError):
                producer.close(timeout_seconds=0)
            self._producer = None
            raise

    def _open(self) -> EventProducer:
        self._producer = self._producer or EventProducer(self._connection, metadata_timeout_seconds=_METADATA_SECONDS)
        return self._producer
