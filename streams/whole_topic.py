"""Reads a topic up to where it ends now."""

import time
from collections.abc import Iterator
from contextlib import closing

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.errors import ConsumeError
from streams.record import Record

SILENCE_SECONDS = 30.0  # of a broker that has records and does not give them
_POLL_SECONDS = 0.5


def read_to_end(connection: KafkaConnection, topic: str) -> Iterator[Record]:
    """All that was on a topic when it was asked; what comes later is left to the next time.

    Args:
        connection: Which Kafka.
        topic: Which topic.

    Raises:
        BrokerUnreachableError: No broker answers.
        MissingTopicError: The topic does not exist.
        TopicError: It cannot be read now.
        ConsumeError: The broker does not give what is there.
    """
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        consumer.check_readable()
        ends, heard = consumer.end_offsets(), time.monotonic()
        while not consumer.has_reached(ends):
            records = consumer.poll(_POLL_SECONDS)
            consumer.check_readable()
            if records:
                heard = time.monotonic()
            elif time.monotonic() > heard + SILENCE_SECONDS:
                raise ConsumeError(f"{topic!r} has records that no broker gives; try again")
            yield from records
