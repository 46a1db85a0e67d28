"""A scorer's reading of topics that are missing, grow, are recreated or cannot be read, on Apache Kafka."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from log_reading import Reading, click, item, until
from small_bundle import write_small_bundle
from topic_changes import recreate

from peft_adapters.registry.manifest import manifest_bytes
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.control import forget_record
from streams.producer import EventProducer
from streams.topics import Topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def connection(apache_kafka: Any) -> KafkaConnection:
    return KafkaConnection.model_validate(apache_kafka.connection)


@pytest.fixture
def admin(connection: KafkaConnection) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(**connection.client_options())) as made:
        yield made


@pytest.fixture
def topics(connection: KafkaConnection, make_topics: Callable[..., Topics]) -> Topics:
    return make_topics(connection, partitions=1)


def blocked(reading: Reading, item_id: str) -> bool:
    row = reading.items.rows.get(item_id)
    return row is not None and bool(reading.items._blocked[row])


@pytest.mark.parametrize("dialect", ["segment", "metarank"])
def test_a_missing_dialect_topic_is_named_and_holds_up_nothing(
    connection: KafkaConnection,
    topics: Topics,
    make_topics: Callable[..., Topics],
    admin: KafkaAdminClient,
    dialect: str,
    tmp_path: Path,
) -> None:
    theirs, missing = make_topics(connection, partitions=1).clicks, f"missing-{topics.clicks}"
    topics = Topics(**topics.model_dump() | {"dialects": {theirs: "segment", missing: dialect}})
    manifest = write_small_bundle(tmp_path / "1", 1)
    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
        producer.send(click(1, "u", "a"))
        producer.flush()
        reading = Reading(connection, topics)
        with reading.running():
            assert reading.reader.caught_up.wait(30), "a missing topic of others is no condition of readiness"
            assert reading.seen("u") == [0]
            assert list(reading.reader.topic_problems()) == [missing]
            assert f"topic {missing!r} does not exist" in reading.reader.topic_problems()[missing]
            assert reading.reader.problem() is None
            producer.send(item("a", status="blocked"))
            producer.send_raw(topics.adapters, b"home", manifest_bytes(manifest))
            producer.send_raw(topics.control, *forget_record("u", ts_ms=1))
            producer.flush()
            until(lambda: blocked(reading, "a"), timeout_seconds=5)
            until(lambda: reading.announcements.announced("home").latest == manifest, timeout_seconds=5)
            until(lambda: reading.seen("u") == [], timeout_seconds=5)
            admin.create_topics({missing: {"num_partitions": 1, "replication_factor": 1}})
            until(lambda: not reading.reader.topic_problems())


def test_the_problem_of_each_missing_topic_of_our_own_is_named(
    connection: KafkaConnection, topics: Topics, admin: KafkaAdminClient
) -> None:
    """The catalogue alone is waited for: without it nothing could be ranked."""
    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
    unneeded = [topics.control, topics.adapters, topics.purchases]
    admin.delete_topics(unneeded)
    reading = Reading(connection, topics)
    with reading.running():
        assert reading.reader.caught_up.wait(60)
        assert sorted(reading.reader.topic_problems()) == sorted(unneeded)
    admin.delete_topics([topics.items])
    reading = Reading(connection, topics)
    with reading.running():
        until(lambda: topics.items in reading.reader.topic_problems())
        assert f"topic {topics.items!r} does not exist" in (reading.reader.catalogue_problem() or "")
        assert not reading.reader.catalogue_read.wait(3)


def test_shoppers_topics_that_cannot_be_read_hold_up_no_blocked_item(
    connection: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_poll = PartitionConsumer.poll

    def poll(self: PartitionConsumer, *arguments: Any, **options: Any) -> Any:
        if any(topic == topics.clicks for topic, _ in self.positions()):
            time.sleep(60)  # as a fetch does that no broker answers
        return real_poll(self, *arguments, **options)

    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
        producer.flush()
        reading = Reading(connection, topics)
        monkeypatch.setattr(time, "sleep", _interruptible(reading))
        monkeypatch.setattr(PartitionConsumer, "poll", poll)
        with reading.running():
            assert reading.reader.catalogue_read.wait(30)
            producer.send(item("a", status="blocked"))
            producer.flush()
            until(lambda: blocked(reading, "a"), timeout_seconds=10)


def _interruptible(reading: Reading) -> Callable[[float], bool]:
    """A sleep that ends with the reader."""
    return reading.reader._stop.wait


def test_partitions_that_are_added_are_read_from_their_first_record(
    connection: KafkaConnection, topics: Topics, admin: KafkaAdminClient
) -> None:
    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
        producer.flush()
        reading = Reading(connection, topics)
        with reading.running():
            assert reading.reader.caught_up.wait(30)
            admin.create_partitions({topics.items: 4, topics.clicks: 4})
            time.sleep(6)  # until producers of 5 s old metadata use them, too
            with EventProducer(connection, topics) as later:
                for number in range(20):
                    later.send(item(f"b{number}", status="blocked"))
                    later.send(click(number + 1, f"u{number}", "a"))
            until(lambda: all(blocked(reading, f"b{number}") for number in range(20)), timeout_seconds=30)
            until(lambda: len(reading.shoppers) == 20, timeout_seconds=30)


def test_recreated_topics_are_read_from_their_start(
    connection: KafkaConnection, topics: Topics, admin: KafkaAdminClient
) -> None:
    with EventProducer(connection, topics) as producer:
        for number in range(40):
            producer.send(item(f"a{number}"))
            producer.send(click(number + 1, f"u{number}", f"a{number}"))
    reading = Reading(connection, topics)
    with reading.running():
        assert reading.reader.caught_up.wait(30)
        recreate(admin, connection, topics, topics.items, topics.clicks)
        with EventProducer(connection, topics) as producer:
            for number in range(60):  # more than before: a position of the old log would be in range
                producer.send(item(f"b{number}", status="blocked"))
                producer.send(click(number + 1000, f"v{number}", "a0"))
        until(lambda: all(blocked(reading, f"b{number}") for number in range(60)))
        until(lambda: len(reading.shoppers) == 100)
        until(lambda: not reading.reader.topic_problems())


def test_shoppers_topics_whose_leader_is_away_hold_up_no_blocked_item(apache_kafka_cluster: list[Any]) -> None:
    """Our own topics are on two brokers; shoppers' topics are on the third one alone, which is killed."""
    first, _, third = apache_kafka_cluster
    connection = KafkaConnection(
        bootstrap_servers=",".join(broker.connection.bootstrap_servers for broker in apache_kafka_cluster)
    )
    topics = Topics.under("leaders")
    elsewhere = [topics.items, topics.control, topics.adapters]
    with closing(KafkaAdminClient(**first.connection.client_options())) as admin:
        admin.create_topics(
            {
                name: {"assignments": {0: [1, 2] if name in elsewhere else [3]}, "configs": {"min.insync.replicas": 1}}
                for name in topics.names()
            }
        )
        admin.wait_for_topics(topics.names())
    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
        producer.send(click(1, "u", "a"))
        producer.flush()
        reading = Reading(connection, topics)
        with reading.running():
            assert reading.reader.caught_up.wait(60)
            third.kill()
            producer.send(item("a", status="blocked"))
            producer.flush()
            until(lambda: blocked(reading, "a"), timeout_seconds=20)
            until(lambda: any(name.startswith(topics.clicks) for name in reading.reader.topic_problems()))
            assert not any(name.startswith(topics.items) for name in reading.reader.topic_problems())
            assert reading.reader.problem() is None
            again = Reading(connection, topics)
            with again.running():
                assert again.reader.caught_up.wait(60), "a scorer that starts now gets ready without shoppers' events"
                assert blocked(again, "a")
            third.start()
            producer.send(click(2, "v", "a"))
            producer.flush()
            until(lambda: reading.seen("v") == [0], timeout_seconds=60)
            until(lambda: not reading.reader.topic_problems(), timeout_seconds=60)


def test_each_topic_may_compress_with_another_codec(
    connection: KafkaConnection, topics: Topics, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    codecs = {topics.items: "zstd", topics.clicks: "snappy", topics.adapters: "lz4", topics.control: "gzip"}
    admin.alter_configs(
        [
            ConfigResource(ConfigResourceType.TOPIC, topic, configs={"compression.type": codec})
            for topic, codec in codecs.items()
        ]
    )
    manifest = write_small_bundle(tmp_path / "1", 1)
    with EventProducer(connection, topics) as producer:
        for number in range(50):
            producer.send(item(f"a{number}", status="blocked"))
            producer.send(click(number + 1, f"u{number}", f"a{number}"))
        producer.send_raw(topics.adapters, b"home", manifest_bytes(manifest))
    reading = Reading(connection, topics)
    with reading.running():
        assert reading.reader.caught_up.wait(30)
        assert len(reading.items) == len(reading.shoppers) == 50
        assert reading.announcements.announced("home").latest == manifest
