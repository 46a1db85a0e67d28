"""Reading of a topic up to its present end."""

import time
from collections.abc import Iterator
from contextlib import closing

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.errors import ConsumeError
from streams.record import Record

SILENCE_SECONDS = 30.0  # after which a broker that has records but does not return them is an error
_POLL_SECONDS = 0.5


def read_to_end(connection: KafkaConnection, topic: str) -> Iterator[Record]:
    """Yield the records that a topic has at the moment; later records are not read.

    Args:
        connection: the brokers to read from.
        topic: the name of the topic.

    Raises:
        BrokerUnreachableError: if no broker answers.
        MissingTopicError: if the topic does not exist.
        TopicError: if the topic cannot be read now.
        ConsumeError: if the broker does not return records that the topic has.
    """
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        consumer.check_readable()
        ends, last_answer = consumer.end_offsets(), time.monotonic()
        while not consumer.has_reached(ends):
            records = consumer.poll(_POLL_SECONDS)
            consumer.check_readable()
            if records:
                last_answer = time.monotonic()
            elif time.monotonic() > last_answer + SILENCE_SECONDS:
                raise ConsumeError(f"{topic!r} has records that no broker returns; try again")
            yield from records
