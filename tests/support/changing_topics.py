"""Topics on Apache Kafka, and what can happen to them."""

import time
import uuid
from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions, NewTopic
from kafka.errors import TopicAlreadyExistsError

from streams.connection import KafkaConnection


class ChangingTopics:
    """Creates, deletes, widens and cuts topics, and sends records to a partition."""

    def __init__(self, connection: KafkaConnection) -> None:
        self.connection = connection
        self.admin = KafkaAdminClient(**connection.client_options())
        self.prefix = uuid.uuid4().hex[:8]

    def topic(self, name: str, partitions: int = 1) -> str:
        topic = f"{self.prefix}.{name}"
        self.admin.create_topics([NewTopic(topic, partitions, 1)])
        return topic

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic])

    def create(self, topic: str, partitions: int = 1) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                self.admin.create_topics([NewTopic(topic, partitions, 1)])
                return
            except TopicAlreadyExistsError:  # a topic is deleted in the background
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def widen(self, topic: str, partitions: int) -> None:
        self.admin.create_partitions({topic: NewPartitions(partitions)})

    def cut(self, topic: str, before: int, partition: int = 0) -> None:
        """Delete the records before an offset, as retention does."""
        self.admin.delete_records({TopicPartition(topic, partition): before})

    def send(self, topic: str, values: Iterable[Any], partition: int = 0, *, key: bytes | None = None) -> None:
        producer = KafkaProducer(**self.connection.client_options())
        for value in values:
            producer.send(topic, str(value).encode(), key=key, partition=partition)
        producer.flush(20)
        producer.close()
