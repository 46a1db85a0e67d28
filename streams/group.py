"""Offsets committed under a consumer group, for tools that show the lag; no part of Headwater depends on them."""

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streams.connection import KafkaConnection, open_client
from streams.errors import BrokerUnreachableError, error_text
from streams.offsets import Offsets

log = structlog.get_logger(__name__)

COMMIT_TIMEOUT_MS = 2_000


class GroupCommitter:
    """A committer of offsets with a connection of its own.

    A kafka-python consumer with a group looks for the group's coordinator in each poll and reads nothing until it has
    found it. Reading must not wait for that, so the reader has no group, and the committer reads nothing.

    Args:
        connection: the brokers to commit to.
        group_id: the consumer group under which tools find the offsets.
    """

    def __init__(self, connection: KafkaConnection, group_id: str) -> None:
        self._connection = connection
        self._group_id = group_id
        self._consumer: KafkaConsumer | None = None

    def commit(self, offsets: Offsets) -> None:
        """Commit the next offset of each partition; a failure is only logged."""
        commits = {TopicPartition(*at): OffsetAndMetadata(offset, "", -1) for at, offset in offsets.items()}
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
            self._consumer.commit(commits, timeout_ms=COMMIT_TIMEOUT_MS)
        except (KafkaError, BrokerUnreachableError) as error:
            problem = f"not confirmed within {COMMIT_TIMEOUT_MS / 1000:g} s: {error_text(error)}"
            log.warning("offsets_not_committed", group_id=self._group_id, problem=problem)

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=COMMIT_TIMEOUT_MS)
