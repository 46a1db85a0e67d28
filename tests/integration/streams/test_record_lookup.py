"""Lookup of single records on each broker; a missing record is None at once."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.errors import BrokerUnreachableError
from streams.lookup import RecordLookup
from streams.producer import EventProducer
from streams.topics import Topics


@pytest.fixture
def lookup(kafka_connection: KafkaConnection, topics: Topics) -> Iterator[RecordLookup]:
    with EventProducer(kafka_connection) as producer:
        for number in range(40):
            producer.send_raw(topics.clicks, f"u-{number}".encode(), str(number).encode())
    with closing(RecordLookup(kafka_connection)) as made:
        yield made


def test_each_record_is_found_in_whatever_order(
    lookup: RecordLookup, kafka_connection: KafkaConnection, topics: Topics
) -> None:
    with closing(PartitionConsumer(kafka_connection, [topics.clicks])) as consumer:
        records = []
        while sum(consumer.lag().values()):
            records += consumer.poll(5)
    assert len({record.partition for record in records}) == 4
    for record in sorted(records, key=lambda one: one.value or b""):
        assert lookup.find(record.topic, record.partition, record.offset) == record


def test_what_is_not_there_is_none_at_once(lookup: RecordLookup, topics: Topics) -> None:
    began = time.monotonic()
    assert lookup.find(topics.clicks, 0, 1_000) is None
    assert lookup.find(topics.clicks, 99, 0) is None
    assert lookup.find(topics.clicks, 0, -1) is None
    assert lookup.find("no.such.topic", 0, 0) is None
    assert not lookup.has_topic("no.such.topic")
    assert lookup.has_topic(topics.clicks)
    assert time.monotonic() - began < 5


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(BrokerUnreachableError):
        RecordLookup(KafkaConnection(bootstrap_servers="127.0.0.1:1"))


@pytest.mark.kafka
class TestWhatTheLogHasNoLonger:
    def test_deleted_records_are_none(self, apache_kafka: Any, make_topics: Any) -> None:
        topics = make_topics(apache_kafka.connection, partitions=1)
        with EventProducer(apache_kafka.connection) as producer:
            for number in range(3):
                producer.send_raw(topics.clicks, b"u", str(number).encode())
        with KafkaAdminClient(**apache_kafka.connection.client_options()) as admin:
            admin.delete_records({KafkaPartition(topics.clicks, 0): 2})
        with closing(RecordLookup(apache_kafka.connection)) as lookup:
            assert lookup.find(topics.clicks, 0, 1) is None
            found = lookup.find(topics.clicks, 0, 2)
            assert found is not None
            assert found.value == b"2"

    def test_aborted_records_and_markers_of_transactions_are_none(self, apache_kafka: Any, make_topics: Any) -> None:
        topics = make_topics(apache_kafka.connection, partitions=1)
        options = apache_kafka.connection.client_options()
        with closing(KafkaProducer(**options, transactional_id=f"t-{time.time_ns()}")) as producer:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(topics.clicks, key=b"u", value=b"aborted")  # offset 0, its marker at 1
            producer.flush()
            producer.abort_transaction()
            producer.begin_transaction()
            producer.send(topics.clicks, key=b"u", value=b"kept")  # offset 2, its marker at 3
            producer.commit_transaction()
        with closing(RecordLookup(apache_kafka.connection)) as lookup:
            began = time.monotonic()
            assert [lookup.find(topics.clicks, 0, offset) is None for offset in range(4)] == [True, True, False, True]
            assert time.monotonic() - began < 5
