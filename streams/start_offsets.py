"""Where to begin reading, so that about the newest events wanted are read."""

from collections.abc import Sequence
from contextlib import closing

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.offsets import Offsets


def start_offsets(connection: KafkaConnection, topics: Sequence[str], events: int) -> tuple[Offsets, dict[str, str]]:
    """Return the offset of each partition to begin with, evenly from all, and the ids of the topics.

    Topics that cannot be read now are left out: they are read from their first record.

    Args:
        connection: Which Kafka.
        topics: Which topics.
        events: How many events, of all partitions together.

    Raises:
        BrokerUnreachableError: No broker answers.
    """
    if not topics:
        return {}, {}
    with closing(PartitionConsumer(connection, topics)) as probe:
        starts, ends, topic_ids = probe.positions(), probe.end_offsets(), probe.topic_ids()
    each = -(-events // max(1, len(starts)))
    return {at: max(start, ends.get(at, start) - each) for at, start in starts.items()}, topic_ids
