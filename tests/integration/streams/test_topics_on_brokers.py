"""Creation of topics, on each broker."""

from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from streams.connection import KafkaConnection
from streams.errors import TopicError
from streams.topic_creation import ensure_topics
from streams.topics import Topics


def described(connection: KafkaConnection, topic: str) -> tuple[int, dict[str, str]]:
    """Return the number of partitions and the settings of a topic."""
    with KafkaAdminClient(**connection.client_options()) as admin:
        partitions = admin.describe_topics([topic])[0]["partitions"]
        settings = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])["topic"][topic]
    return len(partitions), {name: setting["value"] for name, setting in settings.items()}


class TestTopicsOnBrokers:
    def test_creates_each_with_its_settings(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        partitions, items = described(kafka_connection, topics.items)
        assert partitions == 4
        assert items["cleanup.policy"] == "compact"
        assert described(kafka_connection, topics.adapters)[1]["cleanup.policy"] == "compact"
        clicks = described(kafka_connection, topics.clicks)[1]
        assert clicks.get("cleanup.policy", "delete") == "delete"
        assert clicks["retention.bytes"] == clicks["segment.bytes"] == "1048576"

    def test_what_exists_is_left_as_it_is(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        before = described(kafka_connection, topics.items)
        assert ensure_topics(kafka_connection, topics, partitions=9) == []
        assert described(kafka_connection, topics.items) == before

    def test_only_what_is_missing_is_created(self, kafka_connection: KafkaConnection, topics: Topics) -> None:
        more = topics.model_copy(update={"items": topics.items + ".next"})
        assert ensure_topics(kafka_connection, more, partitions=2, bounded=True) == [more.items]
        assert described(kafka_connection, more.items)[0] == 2

    @pytest.mark.kafka
    def test_refusal_names_topic_and_reason(self, apache_kafka: Any) -> None:
        with pytest.raises(TopicError, match=r"could not be created: .*replication factor"):
            ensure_topics(apache_kafka.connection, Topics(clicks="never.created"), replication_factor=3)
