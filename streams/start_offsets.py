"""Start offsets for readers that need only the newest events."""

from collections.abc import Sequence
from contextlib import closing

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.offsets import Offsets


def start_offsets(connection: KafkaConnection, topics: Sequence[str], events: int) -> tuple[Offsets, dict[str, str]]:
    """Return the start offset of each partition, the same distance from every end, and the ids of the topics.

    Topics that cannot be read now are left out: they are read from their first record.

    Args:
        connection: the brokers to read from.
        topics: the names of the topics.
        events: the number of newest events to read, over all partitions together.

    Raises:
        BrokerUnreachableError: if no broker answers.
    """
    if not topics:
        return {}, {}
    with closing(PartitionConsumer(connection, topics)) as probe:
        starts, ends, topic_ids = probe.positions(), probe.end_offsets(), probe.topic_ids()
    each = -(-events // max(1, len(starts)))
    return {at: max(start, ends.get(at, start) - each) for at, start in starts.items()}, topic_ids
