"""Topics that are deleted, recreated, extended, truncated or missing while they are read, on Apache Kafka."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from changing_topics import ChangingTopics
from kafka import KafkaProducer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka.consumer.fetcher import Fetcher
from kafka.errors import StaleMetadata
from structlog.testing import capture_logs

from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.errors import TopicError
from streams.record import Record

pytestmark = pytest.mark.kafka


@pytest.fixture
def log(apache_kafka: Any) -> Iterator[ChangingTopics]:
    found = ChangingTopics(apache_kafka.connection)
    yield found
    found.admin.close()


def values(records: list[Record]) -> list[int]:
    return [int(record.value or b"") for record in records]


def read(consumer: PartitionConsumer, count: int, *, seconds: float = 30.0) -> list[Record]:
    deadline, found = time.monotonic() + seconds, list[Record]()
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(0.2)
    return found + consumer.poll(0.2)


def poll_until(consumer: PartitionConsumer, true: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        assert consumer.poll(0.2) == []


def test_topic_recreated_while_it_is_read(log: ChangingTopics) -> None:
    clicks, items = log.topic("clicks"), log.topic("items")
    log.send(clicks, range(100))
    with capture_logs() as lines, closing(PartitionConsumer(log.connection, [items, clicks])) as consumer:
        assert values(read(consumer, 100)) == list(range(100))
        old = consumer.topic_ids()
        log.delete(clicks)
        poll_until(consumer, lambda: clicks in consumer.problems())
        assert "was deleted" in consumer.problems()[clicks]
        assert "headwater topics create" in consumer.problems()[clicks]
        assert consumer.positions()[clicks, 0] == 100  # it may only be hidden
        log.send(items, range(5))
        assert values(read(consumer, 5)) == list(range(5))  # nothing else is held up
        log.create(clicks)
        log.send(clicks, range(1000, 1300))
        assert values(read(consumer, 300)) == list(range(1000, 1300))
        assert consumer.problems() == {}
        assert [(gap.cause, gap.wanted, gap.resumed) for gap in consumer.gaps] == [("recreated", 100, 0)]
        assert consumer.topic_ids()[clicks] != old[clicks]
        assert consumer.topic_ids()[items] == old[items]
    events = [line["event"] for line in lines]
    assert [events.count(name) for name in ("topic_unreadable", "topic_readable", "log_gap", "kafka_lost")] == [
        1,
        1,
        1,
        0,
    ]


def test_topic_recreated_at_once_while_it_is_read(log: ChangingTopics) -> None:
    """The topic is recreated between two metadata requests; the new log is longer than what was read of the old one."""
    clicks = log.topic("clicks", 2)
    log.send(clicks, range(50))
    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        read(consumer, 50)
        log.delete(clicks)
        log.create(clicks)  # with one partition
        log.send(clicks, range(1000, 1400))
        deadline, found = time.monotonic() + 30, set[int]()
        while not found >= set(range(1000, 1400)):
            assert time.monotonic() < deadline, len(found)
            found |= set(values(consumer.poll(0.2)))
        assert consumer.positions() == {(clicks, 0): 400}


def test_a_partition_without_a_leader_is_no_lost_broker(log: ChangingTopics, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = log.topic("clicks")
    with capture_logs() as lines, closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        stale = 0

        def no_leader(*_: object) -> None:
            nonlocal stale
            stale += 1
            raise StaleMetadata("no leader is known")

        monkeypatch.setattr(consumer._client, "stable_ends", no_leader)
        poll_until(consumer, lambda: stale >= 3)
        assert not consumer.is_broker_lost
    assert "kafka_lost" not in [line["event"] for line in lines]


def test_the_only_topic_of_a_reader_is_deleted_and_no_broker_is_reported_lost(log: ChangingTopics) -> None:
    """The client requests offsets of a deleted topic until its timeout, as it does when a broker hangs."""
    clicks = log.topic("clicks", 3)
    with capture_logs() as lines, closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        for _ in range(3):
            poll_until(consumer, lambda: not consumer.problems())
            log.delete(clicks)
            poll_until(consumer, lambda: clicks in consumer.problems())
            assert not consumer.is_broker_lost
            assert not consumer.is_unanswered
            log.create(clicks, 3)
    assert "kafka_lost" not in [line["event"] for line in lines]


def test_timeouts_that_a_deleted_topic_explains_are_no_lost_broker(
    log: ChangingTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion is unknown until requests have failed: periodic metadata requests are suppressed."""
    clicks = log.topic("clicks")
    with capture_logs() as lines, closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        monkeypatch.setattr(consumer, "_refresh", lambda: None)
        log.delete(clicks)
        poll_until(consumer, lambda: clicks in consumer.problems())
    assert "kafka_lost" not in [line["event"] for line in lines]


@pytest.mark.parametrize("ask", ["lag", "end_offsets"])
def test_ends_that_no_leader_tells_are_no_lost_broker(
    log: ChangingTopics, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = log.topic("clicks")

    def no_leader(*_: object) -> None:
        raise StaleMetadata("no leader is known")

    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        monkeypatch.setattr(consumer._client, "stable_ends", no_leader)
        with pytest.raises(TopicError, match=rf"'{clicks}'\] cannot be read to their end"):
            getattr(consumer, ask)()


@pytest.mark.parametrize("records", [20, 500])
def test_topic_recreated_while_nobody_reads(log: ChangingTopics, records: int) -> None:
    clicks = log.topic("clicks")
    log.send(clicks, range(100))
    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        read(consumer, 100)
        positions, topic_ids = consumer.positions(), consumer.topic_ids()
    log.delete(clicks)
    log.create(clicks, 2)
    log.send(clicks, range(records), 1)
    with closing(PartitionConsumer(log.connection, [clicks], start=positions, topic_ids=topic_ids)) as consumer:
        assert values(read(consumer, records)) == list(range(records))
        assert [(gap.cause, gap.missed) for gap in consumer.gaps] == [("recreated", 0)]
        assert consumer.positions() == {(clicks, 0): 0, (clicks, 1): records}
    # Without an identity only the name counts, as with brokers that report none.
    with closing(PartitionConsumer(log.connection, [clicks], start=positions)) as consumer:
        assert [gap.cause for gap in consumer.gaps] == ["truncation"]


def test_partitions_that_are_added_are_read_from_their_first_record(log: ChangingTopics) -> None:
    clicks, others = log.topic("clicks"), log.topic("others")
    log.send(clicks, range(10))
    with closing(PartitionConsumer(log.connection, [clicks, others], start="latest")) as consumer:
        assert consumer.positions()[clicks, 0] == 10
        log.widen(clicks, 4)
        for partition in range(4):
            log.send(clicks, range(100 * partition, 100 * partition + 50), partition)
        began, found = time.monotonic(), list[int]()
        while len(found) < 200 and time.monotonic() < began + 30:
            log.send(others, range(1))  # a busy reader finds them too
            found += values([record for record in consumer.poll(0.2) if record.topic == clicks])
        assert sorted(found) == sorted(100 * partition + n for partition in range(4) for n in range(50))
        assert consumer.lag().keys() == {(clicks, 0), (clicks, 1), (clicks, 2), (clicks, 3), (others, 0)}
        assert consumer.gaps == []


def test_partitions_that_were_added_while_nobody_read(log: ChangingTopics) -> None:
    clicks = log.topic("clicks")
    log.send(clicks, range(10))
    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        read(consumer, 10)
        positions = consumer.positions()
    log.widen(clicks, 2)
    log.send(clicks, range(40), 1)
    log.cut(clicks, 15, partition=1)
    with closing(PartitionConsumer(log.connection, [clicks], start=positions)) as consumer:
        assert values(read(consumer, 25)) == list(range(15, 40))
        assert [(gap.partition, gap.missed) for gap in consumer.gaps] == [(1, 15)]


def test_records_deleted_before_they_were_read_are_missed(log: ChangingTopics) -> None:
    clicks = log.topic("clicks")
    log.send(clicks, range(100))
    with closing(PartitionConsumer(log.connection, [clicks], start={(clicks, 0): 10})) as consumer:
        log.cut(clicks, 60)
        assert values(read(consumer, 40)) == list(range(60, 100))
        assert [(gap.cause, gap.missed) for gap in consumer.gaps] == [("retention", 50)]


def test_lag_counts_what_lies_behind_a_hanging_transaction(log: ChangingTopics) -> None:
    clicks = log.topic("clicks")
    log.send(clicks, range(5))
    producer = KafkaProducer(**log.connection.client_options(), transactional_id=f"{log.prefix}-hangs")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(clicks, b"999", partition=0)
    producer.flush(20)
    log.send(clicks, range(5, 12))
    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        assert consumer.lag() == {(clicks, 0): 13}
        assert consumer.end_offsets() == {(clicks, 0): 5}
        assert values(read(consumer, 5)) == list(range(5))
        assert consumer.lag() == {(clicks, 0): 8}
        assert consumer.has_reached(consumer.end_offsets())
        assert not consumer.is_behind((clicks, 0))  # nothing that could be read
        producer.abort_transaction()
        producer.close()
        assert values(read(consumer, 7)) == list(range(5, 12))
        assert consumer.lag() == {(clicks, 0): 0}


def test_one_missing_topic_of_several(log: ChangingTopics) -> None:
    clicks, missing = log.topic("clicks"), f"{log.prefix}.missing"
    log.send(clicks, range(20))
    with (
        capture_logs() as lines,
        closing(PartitionConsumer(log.connection, [missing, clicks], start="latest")) as consumer,
    ):
        log.send(clicks, range(20, 40))
        assert values(read(consumer, 20)) == list(range(20, 40))
        assert list(consumer.problems()) == [missing]
        assert "does not exist; create it with `headwater topics create`" in consumer.problems()[missing]
        assert consumer.end_offsets() == {(clicks, 0): 40}
        log.create(missing)
        log.send(missing, range(7))
        assert values(read(consumer, 7)) == list(range(7))  # from the first record, though started at the latest
        assert consumer.problems() == {}
    assert [line["event"] for line in lines] == ["topic_unreadable", "topic_readable"]


def test_all_topics_missing(log: ChangingTopics) -> None:
    missing = f"{log.prefix}.missing"
    with closing(PartitionConsumer(log.connection, [missing])) as consumer:
        assert consumer.poll(0.5) == []
        assert (consumer.lag(), consumer.end_offsets(), consumer.has_reached({(missing, 0): 3})) == ({}, {}, True)
        assert not consumer.is_broker_lost
        log.create(missing)
        log.send(missing, range(3))
        assert values(read(consumer, 3)) == [0, 1, 2]


def test_partition_that_cannot_be_parsed_is_set_aside(log: ChangingTopics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is injected into the parser of records; the other partitions are read."""
    clicks = log.topic("clicks", 2)
    log.send(clicks, range(10), 0)
    log.send(clicks, range(10, 20), 1)
    take = "kafka.consumer.fetcher.Fetcher.PartitionRecords.take"
    whole = Fetcher.PartitionRecords.take

    def broken(self: Any, n: int | None = None) -> Any:
        if self.topic_partition.partition == 0:
            raise ValueError("torn batch")
        return whole(self, n)

    monkeypatch.setattr("streams.read_problems.RETRY_SECONDS", 3.0)
    with closing(PartitionConsumer(log.connection, [clicks])) as consumer:
        monkeypatch.setattr(take, broken)
        assert values(read(consumer, 10)) == list(range(10, 20))
        assert list(consumer.problems()) == [f"{clicks}/0"]
        assert "cannot be read at offset 0: torn batch" in consumer.problems()[f"{clicks}/0"]
        monkeypatch.setattr(take, whole)
        assert values(read(consumer, 10)) == list(range(10))
        assert consumer.problems() == {}


@pytest.fixture
def guarded(apache_kafka_sasl_ssl: Any) -> Iterator[ChangingTopics]:
    found = ChangingTopics(apache_kafka_sasl_ssl.connection)
    yield found
    found.admin.close()


def test_topic_that_may_not_be_read_is_named_and_holds_up_nothing(
    guarded: ChangingTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allow(topic: str, operation: ACLOperation) -> None:
        pattern = ResourcePattern(ResourceType.TOPIC, topic)
        guarded.admin.create_acls([ACL("User:nobody", "*", operation, ACLPermissionType.ALLOW, pattern)])

    monkeypatch.setattr("streams.read_problems.RETRY_SECONDS", 3.0)
    clicks, described, hidden = (guarded.topic(name) for name in ("clicks", "described", "hidden"))
    for topic in (clicks, described, hidden):
        guarded.send(topic, range(10))
    allow(clicks, ACLOperation.READ)
    allow(described, ACLOperation.DESCRIBE)
    nobody = KafkaConnection(**guarded.connection.model_dump() | {"sasl_username": "nobody"})
    with closing(PartitionConsumer(nobody, [hidden, described, clicks])) as consumer:
        assert values(read(consumer, 10)) == list(range(10))
        assert set(consumer.problems()) == {described, hidden}
        assert all("may not be read" in problem for problem in consumer.problems().values())
        for topic in (described, hidden):
            allow(topic, ACLOperation.READ)
        assert values(read(consumer, 20)) == [*range(10), *range(10)]
        assert consumer.problems() == {}
