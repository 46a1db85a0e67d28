"""Where to begin reading, so that about the newest events wanted are read."""

from collections.abc import Sequence
from contextlib import closing

from streams.connection import KafkaConnection
from streams.consumer import Offsets, PartitionConsumer


def look_back(connection: KafkaConnection, topics: Sequence[str], events: int) -> Offsets:
    """The offset of each partition to begin with, evenly from all.

    Args:
        connection: Which Kafka.
        topics: Which topics.
        events: How many events, of all partitions together.

    Raises:
        BrokerUnreachableError: No broker answers.
        TopicError: A topic does not exist.
    """
    if not topics:
        return {}
    with closing(PartitionConsumer(connection, topics)) as probe:
        starts, ends = probe.positions(), probe.end_offsets()
    each = -(-events // max(1, len(starts)))
    return {at: max(start, ends[at] - each) for at, start in starts.items()}
