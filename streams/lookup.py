"""Lookup of single records by topic, partition and offset."""

import time
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from streams.connection import KafkaConnection, open_client
from streams.consumer import LOOKUP_TIMEOUT_MS
from streams.errors import BrokerUnreachableError, ConsumeError
from streams.log_client import CLOSE_TIMEOUT_MS
from streams.record import Record
from streams.record_batches import name_undecodable_batches

_PAUSE_SECONDS = 0.02  # the embedded broker answers an empty fetch at once


class RecordLookup:
    """A reader of single records over one connection.

    Args:
        connection: the brokers to read from.

    Raises:
        BrokerUnreachableError: if no broker answers.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._bounds: dict[KafkaPartition, tuple[int, int]] = {}
        self._consumer: Any = open_client(
            KafkaConsumer,
            connection,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        name_undecodable_batches(self._consumer)
        try:
            self._topics: set[str] = (
                self._consumer.topics()
            )  # a request for a single topic would make some brokers create it
        except KafkaError as error:
            self.close()
            raise BrokerUnreachableError(connection.bootstrap_servers, str(error)) from error

    def has_topic(self, topic: str) -> bool:
        """Return whether a topic existed when the connection was opened."""
        return topic in self._topics

    def find(self, topic: str, partition: int, offset: int) -> Record | None:
        """Return the record at an offset, or None if the log does not have it (any more).

        Args:
            topic: the name of its topic, which need not exist.
            partition: the number of its partition, which need not exist.
            offset: the offset of the record.

        Raises:
            BrokerUnreachableError: if no broker answers in time.
            ConsumeError: if the broker refuses the record.
            UndecodableBatchError: if its batch is corrupt, or compressed with a codec that is not available.
        """
        at = KafkaPartition(topic, partition)
        try:
            start, end = self._bounds_of(at)
            return self._read(at, offset, end) if start <= offset < end else None
        except KafkaError as error:
            raise ConsumeError(
                f"{topic}/{partition}/{offset} cannot be read: {error}; check the rights on it"
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def _bounds_of(self, at: KafkaPartition) -> tuple[int, int]:
        """Return the first offset and the end of a partition as of the first request; nothing is read beyond them."""
        if at not in self._bounds:
            if at.topic not in self._topics or at.partition not in self._consumer.partitions_for_topic(at.topic):
                return 0, 0
            start = self._consumer.beginning_offsets([at], timeout_ms=LOOKUP_TIMEOUT_MS)[at]
            self._bounds[at] = start, self._consumer.end_offsets([at], timeout_ms=LOOKUP_TIMEOUT_MS)[at]
        return self._bounds[at]

    def _read(self, at: KafkaPartition, offset: int, end: int) -> Record | None:
        """Read from an offset on; if the record was compacted away, the first one found has a higher offset."""
        if self._consumer.assignment() != {at}:
            self._consumer.assign([at])
        self._consumer.seek(at, offset)
        deadline = time.monotonic() + LOOKUP_TIMEOUT_MS / 1000
        while time.monotonic() < deadline:
            for record in self._consumer.poll(timeout_ms=0, max_records=1).get(at, []):
                if record.offset != offset:
                    return None
                return Record(at.topic, at.partition, offset, record.key, record.value, record.timestamp)
            if (self._consumer.position(at, timeout_ms=0) or 0) >= end:  # only markers of transactions
                return None
            time.sleep(_PAUSE_SECONDS)
        servers = self._connection.bootstrap_servers
        raise BrokerUnreachableError(servers, f"no answer within {LOOKUP_TIMEOUT_MS // 1000} s")
