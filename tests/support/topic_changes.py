"""Changes to topics of an Apache Kafka while they are read."""

import time

from kafka import KafkaAdminClient

from streams.connection import KafkaConnection
from streams.topic_creation import ensure_topics
from streams.topics import Topics


def recreate(admin: KafkaAdminClient, connection: KafkaConnection, topics: Topics, *names: str) -> None:
    """Delete some of our own topics, wait until they are gone, and create them again with one partition."""
    admin.delete_topics(list(names))
    deadline = time.monotonic() + 30
    while set(names) & set(admin.list_topics()):
        assert time.monotonic() < deadline, f"{names} were not deleted"
        time.sleep(0.1)
    ensure_topics(connection, topics, partitions=1)
