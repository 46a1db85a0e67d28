"""A wrapper of kafka-python's consumer that adds both ends of a log and the partition that an error is about."""

import traceback
from collections.abc import Collection, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import StaleMetadata

from streams.connection import KafkaConnection, connect_problem, open_client
from streams.offsets import Offsets, TopicPartition
from streams.record_batches import name_undecodable_batches

FETCH_WAIT_MS = 100  # a broker answers requests one by one: a request for offsets waits behind an idle fetch
CLOSE_TIMEOUT_MS = 2_000


class LogClient:
    """A client that reads assigned partitions; its owner decides on partitions and positions.

    Args:
        connection: the brokers to read from.

    Raises:
        BrokerUnreachableError: if no broker answers.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._consumer = self._open()

    @property
    def manager(self) -> Any:
        """The connection manager of kafka-python."""
        return self._consumer._client._manager

    def reopen(self) -> None:
        """Replace the client by a new one without assignment, buffered records, fetch sessions and cached metadata.

        Raises:
            BrokerUnreachableError: if no broker answers; the old client stays in use.
        """
        old, self._consumer = self._consumer, self._open()
        old.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def assign(self, positions: Offsets, paused: Collection[TopicPartition]) -> None:
        """Read these partitions and no others, each from its position.

        Args:
            positions: the next offset of each partition.
            paused: the partitions to pause.
        """
        self._consumer.assign([KafkaPartition(*at) for at in positions])
        self.seek(positions)
        self.pause([at for at in paused if at in positions])

    def seek(self, positions: Offsets) -> None:
        """Move to these positions; buffered records of these partitions are dropped."""
        for at, offset in positions.items():
            self._consumer.seek(KafkaPartition(*at), offset)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Stop fetching from some partitions."""
        self._consumer.pause(*(KafkaPartition(*at) for at in partitions))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch again from paused partitions."""
        self._consumer.resume(*(KafkaPartition(*at) for at in partitions))

    def fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        """Return the records that are available, by partition."""
        self._unpark()
        fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        return {(at.topic, at.partition): records for at, records in fetched.items()}

    def position(self, at: TopicPartition) -> int | None:
        """Return the client's position, which also passes over the markers of transactions."""
        position: int | None = self._consumer.position(KafkaPartition(*at), timeout_ms=0)
        return position

    def high_watermark(self, at: TopicPartition) -> int | None:
        """Return the end of the log as of the last fetch."""
        end: int | None = self._consumer.highwater(KafkaPartition(*at))
        return end

    def starts(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Request the first offset of each partition.

        Raises:
            KafkaError: if the request was not answered.
        """
        return _list_offsets(self._consumer.beginning_offsets, partitions, timeout_ms)

    def stable_ends(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Request the offset up to which each partition can be read: an open transaction ends it.

        Raises:
            KafkaError: if the request was not answered.
        """
        return _list_offsets(self._consumer.end_offsets, partitions, timeout_ms)

    def log_ends(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Request the end of each partition, including records of open transactions.

        Raises:
            KafkaError: if the request was not answered.
        """
        # A request for offsets uses the isolation level of its fetcher. This fetcher fetches nothing.
        lookup = Fetcher(self._consumer._client, self._consumer._subscription, isolation_level="read_uncommitted")
        return _list_offsets(lookup.end_offsets, partitions, timeout_ms)

    def cut_off(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[str, str]]:
        """Return the partitions whose leader accepts no connection, with its advertised address and the cause."""
        cluster = self.manager.cluster
        leaders = {at: cluster.leader_for_partition(KafkaPartition(*at)) for at in partitions}
        brokers = {broker.node_id: broker for broker in cluster.brokers() if broker.node_id in set(leaders.values())}
        causes = {node: connect_problem(broker.host, broker.port) for node, broker in brokers.items()}
        return {
            at: (f"{brokers[node].host}:{brokers[node].port}", cause)
            for at, node in leaders.items()
            if (cause := causes.get(node)) is not None
        }

    def differs(self, topic: str, identity: str | None) -> bool:
        """Return whether the client's cached metadata show that a topic is gone, or is another log."""
        cluster = self.manager.cluster
        if cluster.partitions_for_topic(topic) is None:
            return True
        topic_id = cluster.topic_id(topic)
        return identity is not None and topic_id is not None and not identity.endswith(f"/{topic_id}")

    def _open(self) -> KafkaConsumer:
        consumer = open_client(
            KafkaConsumer,
            self._connection,
            auto_offset_reset="none",  # a gap must be reported, not skipped by the client
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            metadata_max_age_ms=60_000,
            metrics_enabled=False,
        )
        name_undecodable_batches(consumer)
        return consumer

    def _unpark(self) -> None:
        """Have the client continue with the records that it had fetched from a partition when that was paused.

        kafka-python 3.0.12 sets them aside and returns to them only while `_next_partition_records` is None, which it
        never is once anything was read. Without this, a partition that was paused may never be read again.
        """
        fetcher = self._consumer._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None


def failed_partition(error: BaseException) -> TopicPartition | None:
    """Return the partition that the client was parsing when it raised; the error does not name it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("_parse_fetched_data", "_append"):
            at = frame.f_locals["tp"]
            return at.topic, at.partition
    return None


def _list_offsets(request: Any, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
    try:
        offsets = request([KafkaPartition(*at) for at in partitions], timeout_ms=timeout_ms)
    except KeyError as error:  # kafka-python omits a partition without a known leader, then fails to find it
        raise StaleMetadata(f"no leader is known for {error}") from error
    return {(at.topic, at.partition): offset for at, offset in offsets.items()}
