"""The state writer with topics that are recreated, extended or missing, on Apache Kafka."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from redis_server import RedisServer
from state_deployment import Deployment, click, until
from structlog.testing import capture_logs
from topic_changes import recreate

from streams.connection import KafkaConnection
from streams.control import forget_record
from streams.producer import EventProducer
from streams.topics import Topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def shop(apache_kafka: Any, make_topics: Callable[..., Topics], valkey_server: RedisServer) -> Iterator[Deployment]:
    connection = apache_kafka.connection
    made = Deployment(connection, make_topics(connection, partitions=1), valkey_server)
    with closing(made.store), made.producer:
        yield made


@pytest.fixture
def admin(apache_kafka: Any) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(**apache_kafka.connection.client_options())) as made:
        yield made


def send_anew(shop: Deployment, count: int) -> None:
    """Send clicks with a producer that knows the topic as it is now."""
    with EventProducer(shop.connection, shop.topics) as producer:
        for number in range(count):
            producer.send(click(number + 1_000, f"new{number}"))


def recreate_clicks(shop: Deployment, admin: KafkaAdminClient) -> None:
    recreate(admin, shop.connection, shop.topics, shop.topics.clicks)


def test_a_topic_recreated_while_the_writer_is_away_is_read_from_its_start(
    shop: Deployment, admin: KafkaAdminClient
) -> None:
    shop.send(*(click(number, "u") for number in range(20)))
    with shop.writing():
        until(lambda: len(shop.times("u")) == 20)
        until(lambda: shop.topics.clicks in shop.store.topic_ids())
    before = shop.store.topic_ids()
    recreate_clicks(shop, admin)
    send_anew(shop, 30)  # more than before: the offset of the old log would be in range
    with shop.writing():
        until(lambda: all(shop.times(f"new{number}") for number in range(30)))
        until(lambda: shop.store.topic_ids()[shop.topics.clicks] != before[shop.topics.clicks])
    assert shop.store.topic_ids()[shop.topics.purchases] == before[shop.topics.purchases]
    assert len(shop.times("u")) == 20


def test_a_topic_recreated_with_fewer_partitions_leaves_no_offsets_of_the_old_one(
    shop: Deployment, admin: KafkaAdminClient
) -> None:
    admin.create_partitions({shop.topics.clicks: 3})
    with shop.writing():
        until(lambda: (shop.topics.clicks, 2) in shop.store.offsets())
        recreate_clicks(shop, admin)
        send_anew(shop, 5)
        until(lambda: all(shop.times(f"new{number}") for number in range(5)))
        until(lambda: (shop.topics.clicks, 2) not in shop.store.offsets())


def test_partitions_that_are_added_are_read_from_their_first_record(shop: Deployment, admin: KafkaAdminClient) -> None:
    shop.send(click(1, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1])
        admin.create_partitions({shop.topics.clicks: 4})
        time.sleep(1)
        send_anew(shop, 20)
        until(lambda: all(shop.times(f"new{number}") for number in range(20)), timeout_seconds=30)


def test_records_that_retention_deleted_before_they_were_read_are_counted(
    shop: Deployment, admin: KafkaAdminClient
) -> None:
    def missed() -> float | None:
        return shop.registry.get_sample_value("headwater_state_missed_records_total", {"topic": shop.topics.clicks})

    shop.send(click(1, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1])
    shop.send(*(click(number, "u") for number in range(2, 12)))
    admin.delete_records({TopicPartition(shop.topics.clicks, 0): 8})
    with shop.writing():
        until(lambda: shop.times("u") == [1, 9, 10, 11])
        until(lambda: missed() == 7)


def test_a_missing_topic_holds_up_no_other_and_is_shown(shop: Deployment, admin: KafkaAdminClient) -> None:
    missing = [shop.topics.control, shop.topics.purchases]
    admin.delete_topics(missing)

    def readable(topic: str) -> float | None:
        return shop.registry.get_sample_value("headwater_topic_readable", {"topic": topic})

    shop.send(click(1, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1])
        until(lambda: all(readable(topic) == 0 for topic in missing))
        assert readable(shop.topics.clicks) == 1
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1} for topic in missing})
        until(lambda: all(readable(topic) == 1 for topic in missing))


def test_offsets_of_a_release_that_kept_no_ids_are_gone_on_from(shop: Deployment) -> None:
    shop.send(click(1, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1])
    written = f"{shop.settings.prefix}:written"
    client = shop.server.client()
    client.hdel(written, *(name for name in client.hkeys(written) if str(name).endswith("/id")))
    assert shop.store.topic_ids() == {}
    shop.send(click(2, "u"))
    with shop.writing():
        until(lambda: shop.times("u") == [1, 2])
        until(lambda: shop.topics.clicks in shop.store.topic_ids())
    assert shop.written("click") == 2


def test_no_event_of_a_forgotten_shopper_is_written_while_the_control_topic_cannot_be_read(
    apache_kafka_sasl_ssl: Any, make_topics: Callable[..., Topics], valkey_server: RedisServer
) -> None:
    everything = apache_kafka_sasl_ssl.connection
    nobody = KafkaConnection(**everything.model_dump() | {"sasl_username": "nobody"})
    topics = make_topics(everything, partitions=1)
    shop = Deployment(everything, topics, valkey_server)
    reader = Deployment(nobody, topics, valkey_server)
    reader.settings, reader.store = shop.settings, shop.store
    with closing(KafkaAdminClient(**everything.client_options())) as admin, closing(shop.store), shop.producer:

        def allow(topic: str) -> None:
            pattern = ResourcePattern(ResourceType.TOPIC, topic)
            admin.create_acls([ACL("User:nobody", "*", ACLOperation.READ, ACLPermissionType.ALLOW, pattern)])

        def shown(name: str, **labels: str) -> float | None:
            return reader.registry.get_sample_value(name, labels)

        allow(topics.clicks)
        allow(topics.purchases)
        shop.send(click(1, "forgotten"), click(2, "kept"))
        shop.producer.send_raw(topics.control, *forget_record("forgotten", ts_ms=time.time_ns() // 1_000_000))
        shop.producer.flush()
        with capture_logs() as lines, reader.writing(), reader.producer:
            until(lambda: shown("headwater_topic_readable", topic=topics.control) == 0)
            time.sleep(3)
            assert (shop.times("forgotten"), shop.times("kept")) == ([], [])
            assert shown("headwater_state_writing") == 0
            allow(topics.control)
            until(lambda: shop.times("kept") == [2])
            until(lambda: shown("headwater_topic_readable", topic=topics.control) == 1)
            assert shop.times("forgotten") == []
            assert reader.written("forgotten") == 1
    [line] = [line for line in lines if line["event"] == "state_not_written"]
    assert "no shopper's events are written before topic" in line["problem"]
