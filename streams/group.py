"""Offsets recorded under a group id, for tools that show how far a reader has come; nothing here depends on them."""

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streams.connection import KafkaConnection, open_client
from streams.errors import BrokerUnreachableError, error_text

log = structlog.get_logger(__name__)

COMMIT_TIMEOUT_MS = 2_000


class GroupCommitter:
    """Commits offsets over a connection of its own.

    A kafka-python consumer with a group looks for the group's coordinator in each poll and reads nothing until it has
    found it. Reading must not wait for that, so the reader has no group, and this has nothing else.

    Args:
        connection: Which Kafka.
        group_id: The name under which tools find the offsets.
    """

    def __init__(self, connection: KafkaConnection, group_id: str) -> None:
        self._connection = connection
        self._group_id = group_id
        self._consumer: KafkaConsumer | None = None

    def commit(self, offsets: dict[tuple[str, int], int]) -> None:
        """Commits the next offset to read of each partition; a failure is logged."""
        marks = {TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in offsets.items()}
        try:
            if self._consumer is None:
                self._consumer = open_client(
                    KafkaConsumer,
                    self._connection,
                    group_id=self._group_id,
                    enable_auto_commit=False,
                    bootstrap_timeout_ms=COMMIT_TIMEOUT_MS,
                    metrics_enabled=False,
                )
            self._consumer.commit(marks, timeout_ms=COMMIT_TIMEOUT_MS)
        except (KafkaError, BrokerUnreachableError) as error:
            problem = f"not confirmed within {COMMIT_TIMEOUT_MS / 1000:g} s: {error_text(error)}"
            log.warning("offsets_not_committed", group_id=self._group_id, problem=problem)

    def close(self) -> None:
        """Lets go of the connection."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=COMMIT_TIMEOUT_MS)
