"""Compressed batches are read on each broker; errors name a batch that cannot be decoded."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import kafka.codec
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import PolicyViolationError
from segments import damage_batch, segment_of

from streams import KafkaConnection, Topics
from streams.consumer import PartitionConsumer
from streams.errors import UndecodableBatchError
from streams.lookup import RecordLookup
from streams.record import Record
from streams.record_batches import _remedy

CODECS = ("gzip", "snappy", "lz4", "zstd")
LIBRARIES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}
NUMBERS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
VALUES = [f"value {number} ".encode() * 500 for number in range(60)]  # more than one block of a codec


def produce(connection: KafkaConnection, topic: str, values: list[bytes], codec: str | None = None) -> None:
    with closing(KafkaProducer(**connection.client_options(), compression_type=codec)) as producer:
        for value in values:
            producer.send(topic, key=b"u", value=value, partition=0)
        producer.flush()


def read(connection: KafkaConnection, topic: str, count: int) -> list[Record]:
    records: list[Record] = []
    with closing(PartitionConsumer(connection, [topic])) as consumer:
        for _ in range(20):
            records += consumer.poll(0.5)
            if len(records) >= count:
                break
    return records


def find(connection: KafkaConnection, topic: str, offset: int) -> Record | None:
    with closing(RecordLookup(connection)) as lookup:
        return lookup.find(topic, 0, offset)


@pytest.fixture
def recompressing(apache_kafka: Any) -> Iterator[Callable[[str], str]]:
    """Create topics that recompress with their own codec, whatever the producer uses."""
    created: list[str] = []
    with closing(KafkaAdminClient(**apache_kafka.connection.client_options())) as admin:

        def create(codec: str) -> str:
            topic = f"recompressed-{codec}-{len(created)}"
            admin.create_topics(
                {topic: {"num_partitions": 1, "replication_factor": 1, "configs": {"compression.type": codec}}}
            )
            admin.wait_for_topics([topic])
            created.append(topic)
            return topic

        yield create
        admin.delete_topics(created)


@pytest.mark.parametrize("codec", CODECS)
def test_batches_compressed_by_the_producer_are_read(
    kafka_connection: KafkaConnection, topics: Topics, codec: str
) -> None:
    produce(kafka_connection, topics.clicks, VALUES, codec)
    assert [record.value for record in read(kafka_connection, topics.clicks, len(VALUES))] == VALUES
    found = find(kafka_connection, topics.clicks, 41)
    assert found is not None
    assert found.value == VALUES[41]


@pytest.mark.kafka
@pytest.mark.parametrize("codec", CODECS)
def test_batches_recompressed_by_the_topic_are_read(
    apache_kafka: Any, recompressing: Callable[[str], str], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = recompressing(codec)
    produce(apache_kafka.connection, topic, VALUES)
    assert [record.value for record in read(apache_kafka.connection, topic, len(VALUES))] == VALUES
    monkeypatch.setattr(f"kafka.codec.has_{codec}", lambda: False)  # shows that the broker has recompressed them
    with pytest.raises(UndecodableBatchError, match=rf"{topic}/0/41 \(codec {codec}\)"):
        find(apache_kafka.connection, topic, 41)


@pytest.mark.kafka
@pytest.mark.parametrize("codec", LIBRARIES)
def test_a_missing_library_is_named_with_its_package(
    apache_kafka: Any, topics_on_apache: Topics, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(apache_kafka.connection, topics_on_apache.clicks, VALUES, codec)
    monkeypatch.setattr(f"kafka.codec.has_{codec}", lambda: False)
    with pytest.raises(UndecodableBatchError, match=rf"codec {codec}\).*pip install {LIBRARIES[codec]}"):
        find(apache_kafka.connection, topics_on_apache.clicks, 3)


@pytest.fixture
def topics_on_apache(apache_kafka: Any, make_topics: Callable[..., Topics]) -> Topics:
    return make_topics(apache_kafka.connection, partitions=1)


@pytest.mark.kafka
def test_damaged_batches_are_named_and_their_neighbours_are_read(
    mortal_apache_kafka: Any, make_topics: Callable[..., Topics]
) -> None:
    """Each batch holds one record; the second of each topic is damaged on the disk of a stopped broker."""
    broker = mortal_apache_kafka
    topics = make_topics(broker.connection, partitions=1)
    damage: dict[str, tuple[str, dict[str, Any], str]] = {
        topics.clicks: ("gzip", {}, "codec gzip"),
        topics.impressions: ("snappy", {}, "codec snappy"),
        topics.purchases: ("lz4", {}, "codec lz4"),
        topics.dead_letters: ("zstd", {}, "codec zstd"),
        topics.items: ("gzip", {"codec": 7}, "codec number 7.*have its producer use"),
        topics.control: ("gzip", {"codec": 4}, "codec zstd"),
        topics.adapters: ("gzip", {"fix_crc": False}, "codec gzip.*crc.*deleting the records before offset 2"),
    }
    for topic, (codec, _, _) in damage.items():
        for value in (b"first", b"second", b"third"):
            produce(broker.connection, topic, [value * 100], codec)
    broker.stop()
    for topic, (_, options, _) in damage.items():
        damage_batch(segment_of(broker.directory, topic), 1, **options)
    broker.start()
    for topic, (_, _, named) in damage.items():
        with pytest.raises(UndecodableBatchError, match=rf"{topic}/0/1 \({named}") as raised:
            find(broker.connection, topic, 1)
        assert (raised.value.offset, raised.value.end) == (1, 2)
        for offset, value in ((0, b"first"), (2, b"third")):
            found = find(broker.connection, topic, offset)
            assert found is not None
            assert found.value == value * 100
    with closing(PartitionConsumer(broker.connection, list(damage))) as consumer:
        records = poll_until(consumer, lambda: len(consumer.problems()) == len(damage))
        assert sorted(record.topic for record in records) == sorted(damage), "the first record of each topic"
        for topic, (_, _, named) in damage.items():
            sentence = consumer.problems()[f"{topic}/0"]
            assert re.search(rf"partition 0 of topic '{topic}' cannot be read at offset 1 \({named}", sentence)
        with closing(KafkaAdminClient(**broker.connection.client_options())) as admin:
            admin.delete_records({KafkaPartition(topics.clicks, 0): 2})
        records = poll_until(consumer, lambda: f"{topics.clicks}/0" not in consumer.problems())
        assert [(record.topic, record.offset) for record in records] == [(topics.clicks, 2)]
        assert [gap.missed for gap in consumer.gaps] == [1]


def poll_until(consumer: PartitionConsumer, holds: Callable[[], bool]) -> list[Record]:
    """Poll until a condition holds, and a moment longer."""
    records: list[Record] = []
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, consumer.problems()
        records += consumer.poll(0.5)
    return records + consumer.poll(0.5)


def test_the_libraries_of_all_codecs_are_dependencies() -> None:
    assert all(getattr(kafka.codec, f"has_{codec}")() for codec in CODECS)


@pytest.mark.kafka
def test_the_remedy_for_a_corrupt_batch_of_a_compacted_topic_works(apache_kafka: Any, topics_on_apache: Topics) -> None:
    """Kafka deletes no records of a topic that is only compacted; the settings of the remedy allow it."""
    topic, connection = topics_on_apache.items, apache_kafka.connection
    produce(connection, topic, [b"1", b"2", b"3"])
    remedy = _remedy("gzip", 2, ValueError("crc"))
    assert "deleting the records before offset 2" in remedy
    named = dict(re.findall(r"`([a-z.]+)=([^`]+)`", remedy))
    assert named == {"cleanup.policy": "compact,delete", "retention.ms": "-1"}
    with closing(KafkaAdminClient(**connection.client_options())) as admin:
        with pytest.raises(PolicyViolationError):
            admin.delete_records({KafkaPartition(topic, 0): 2})
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, named)])
        deadline = time.monotonic() + 20
        while True:
            try:
                admin.delete_records({KafkaPartition(topic, 0): 2})
                break
            except PolicyViolationError:  # the broker has not heard of the new settings yet
                assert time.monotonic() < deadline
                time.sleep(0.2)
    assert [record.value for record in read(connection, topic, 1)] == [b"3"]
