"""kafka-python's consumer, with what it lacks: both ends of a log, and the partition that an error is about."""

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

FETCH_WAIT_MS = 100  # a broker answers one request after the other: whoever asks for offsets waits behind an idle fetch
CLOSE_TIMEOUT_MS = 2_000


class LogClient:
    """Reads assigned partitions. Knows no rule: which are assigned, and where they are read, its owner decides.

    Args:
        connection: The brokers.

    Raises:
        BrokerUnreachableError: No broker answers.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._consumer = self._open()

    @property
    def manager(self) -> Any:
        """The connection manager of kafka-python."""
        return self._consumer._client._manager

    def reopen(self) -> None:
        """Begin again with a new client, nothing assigned: it has no records, sessions or metadata of the old one.

        Raises:
            BrokerUnreachableError: No broker answers; the old client stays.
        """
        old, self._consumer = self._consumer, self._open()
        old.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def assign(self, positions: Offsets, paused: Collection[TopicPartition]) -> None:
        """Read these partitions and no others, each from its position.

        Args:
            positions: The next offset of each partition.
            paused: Those to pause.
        """
        self._consumer.assign([KafkaPartition(*at) for at in positions])
        self.seek(positions)
        self.pause([at for at in paused if at in positions])

    def seek(self, positions: Offsets) -> None:
        """Move to these positions; whatever the client has fetched of others is dropped."""
        for at, offset in positions.items():
            self._consumer.seek(KafkaPartition(*at), offset)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch nothing of some partitions."""
        self._consumer.pause(*(KafkaPartition(*at) for at in partitions))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Fetch again what was paused."""
        self._consumer.resume(*(KafkaPartition(*at) for at in partitions))

    def fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        """Return the records that are there, by partition."""
        self._unpark()
        fetched = self._consumer.poll(timeout_ms=timeout_ms, max_records=max_records)
        return {(at.topic, at.partition): records for at, records in fetched.items()}

    def position(self, at: TopicPartition) -> int | None:
        """Return the client's own position: unlike records, it passes over the markers of transactions."""
        position: int | None = self._consumer.position(KafkaPartition(*at), timeout_ms=0)
        return position

    def high_watermark(self, at: TopicPartition) -> int | None:
        """Return the log's end as of the last fetch."""
        end: int | None = self._consumer.highwater(KafkaPartition(*at))
        return end

    def starts(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Ask for the first offset of each partition.

        Raises:
            KafkaError: It was not answered.
        """
        return _listed(self._consumer.beginning_offsets, partitions, timeout_ms)

    def stable_ends(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Ask up to where each partition can be read: a transaction that is open ends it.

        Raises:
            KafkaError: It was not answered.
        """
        return _listed(self._consumer.end_offsets, partitions, timeout_ms)

    def log_ends(self, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
        """Ask where each partition ends, records of open transactions included.

        Raises:
            KafkaError: It was not answered.
        """
        # The isolation level of a request for offsets is its fetcher's. This one fetches nothing.
        lookup = Fetcher(self._consumer._client, self._consumer._subscription, isolation_level="read_uncommitted")
        return _listed(lookup.end_offsets, partitions, timeout_ms)

    def cut_off(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[str, str]]:
        """Return the partitions whose leader takes no connection, with its advertised address and the cause."""
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
        """Return whether the client's cached metadata show a topic to be gone, or to be another log."""
        cluster = self.manager.cluster
        if cluster.partitions_for_topic(topic) is None:
            return True
        topic_id = cluster.topic_id(topic)
        return identity is not None and topic_id is not None and not identity.endswith(f"/{topic_id}")

    def _open(self) -> KafkaConsumer:
        consumer = open_client(
            KafkaConsumer,
            self._connection,
            auto_offset_reset="none",  # a jump in the log is ours to report, not the client's to make
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
        """Have the client go on with what it had fetched of a partition when that was paused.

        kafka-python 3.0.12 puts it aside, and takes it up again only while `_next_partition_records` is None; which it
        is not once anything was read, exhausted or not. Without this a partition once paused may never be read again.
        """
        fetcher = self._consumer._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None


def failed_partition(error: BaseException) -> TopicPartition | None:
    """Return the partition that the client was parsing when it raised: the error itself does not name it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("_parse_fetched_data", "_append"):
            at = frame.f_locals["tp"]
            return at.topic, at.partition
    return None


def _listed(ask: Any, partitions: Sequence[TopicPartition], timeout_ms: int) -> Offsets:
    try:
        offsets = ask([KafkaPartition(*at) for at in partitions], timeout_ms=timeout_ms)
    except KeyError as error:  # kafka-python leaves out a partition whose leader it does not know, and trips over it
        raise StaleMetadata(f"no leader is known for {error}") from error
    return {(at.topic, at.partition): offset for at, offset in offsets.items()}
