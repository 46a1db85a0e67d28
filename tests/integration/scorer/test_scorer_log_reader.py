"""A scorer's reading of the log, on a real broker."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from kafka import KafkaProducer
from log_reading import Reading, click, item, until
from pydantic import SecretStr
from small_bundle import write_small_bundle
from structlog.testing import capture_logs

from peft_adapters.registry.manifest import manifest_bytes
from services.operate.control.command import forget
from services.settings import Settings
from streams.connection import KafkaConnection, open_client
from streams.control import forget_record
from streams.embedded_broker import EmbeddedBroker
from streams.events import Click, Purchase
from streams.privacy import PrivacySettings, pseudonymiser
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics
from streams.topics import Topics


def test_it_reads_what_is_there_and_then_what_comes(
    kafka_connection: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    manifests = [write_small_bundle(tmp_path / str(version), version) for version in (1, 2, 3)]
    with EventProducer(kafka_connection, topics) as producer:
        for item_id in ("a", "b", "c"):
            producer.send(item(item_id))
        for manifest in manifests[:2]:
            producer.send_raw(topics.adapters, b"home", manifest_bytes(manifest))
        producer.send(click(1, "u", "a"))
        producer.send_raw(topics.clicks, b"u", b"not an event")
        producer.send(Purchase(event_id="p1", ts=2, user_id="v", item_id="b"))
        producer.flush()
        reading = Reading(kafka_connection, topics)
        with reading.running():
            assert reading.reader.catalogue_read.wait(30)
            assert len(reading.items) == 3
            assert reading.announcements.announced("home").latest == manifests[1]
            assert reading.reader.caught_up.wait(30)
            assert reading.seen("u") == [reading.items.rows["a"]]
            assert reading.seen("v") == [reading.items.rows["b"]]
            producer.send(click(2, "u", "late"))
            producer.send(item("late"))
            producer.send(item("c", status="blocked"))
            producer.send_raw(topics.items, b"b", None)
            producer.send_raw(topics.adapters, b"home", manifest_bytes(manifests[2]))
            producer.flush()
            until(lambda: reading.announcements.announced("home").latest == manifests[2])
            until(lambda: reading.seen("u") == [reading.items.rows[item_id] for item_id in ("late", "a")])
            rows = [reading.items.rows[item_id] for item_id in ("a", "b", "c", "late")]
            until(lambda: list(map(reading.items._blocked.__getitem__, rows)) == [False, True, True, False])


def test_it_looks_back_so_far_and_no_further(
    embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics]
) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    topics = make_topics(connection, partitions=1)
    with EventProducer(connection, topics) as producer:
        producer.send(item("a"))
        for number in range(40):
            producer.send(click(number, f"u{number}", "a"))
    reading = Reading(connection, topics, look_back_events=20)  # from two partitions: 10 each
    with reading.running(), capture_logs() as logs:
        assert reading.reader.caught_up.wait(30)
        assert len(reading.shoppers) == 10
        assert not reading.seen("u29")
        assert reading.seen("u30")
    assert logs == []


def test_topics_in_other_dialects_are_read_beside_our_own(
    kafka_connection: KafkaConnection, topics: Topics, make_topics: Callable[..., Topics]
) -> None:
    theirs = make_topics(kafka_connection)
    topics = Topics(**topics.model_dump() | {"dialects": {theirs.clicks: "segment", theirs.purchases: "metarank"}})
    call = {"type": "track", "event": "Product Clicked", "userId": "u", "messageId": "m", "properties": {"sku": "a"}}
    of_item = {"timestamp": "2026-01-01T00:00:00Z", "item": "a"}
    old_item = of_item | {"event": "item", "id": "i", "fields": [{"name": "title", "value": "Mug"}]}
    sold = of_item | {"event": "interaction", "id": "p", "user": "v", "type": "purchase"}
    with EventProducer(kafka_connection, topics) as producer:
        for said in (old_item, sold):
            producer.send_raw(theirs.purchases, b"same partition", json.dumps(said).encode())
        producer.send_raw(theirs.clicks, b"u", b'{"type": "page"}')
        producer.send_raw(theirs.clicks, b"u", json.dumps(call).encode())
    reading = Reading(kafka_connection, topics, look_back_events=1)  # items are read, however far back
    with reading.running():
        assert reading.reader.caught_up.wait(30)
        assert reading.seen("u") == reading.seen("v") == [reading.items.rows["a"]]


def test_without_topics_it_says_so_once_and_goes_on_when_they_are_there(embedded_broker: EmbeddedBroker) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    topics = Topics.under("later")
    reading = Reading(connection, topics)
    with capture_logs() as logs, reading.running():
        until(lambda: len(logs) > 0)
        time.sleep(1)  # some more attempts
        assert not reading.reader.catalogue_read.is_set()
        ensure_topics(connection, topics, bounded=True)
        assert reading.reader.caught_up.wait(30)
    lines = [entry for entry in logs if entry["log_level"] == "warning"]
    assert {entry["event"] for entry in lines} == {"topic_unreadable"}
    assert sorted(entry["topic"] for entry in lines) == ["later.adapters", "later.control", "later.items"]


def test_a_broker_that_comes_late_and_goes_is_outlived(tmp_path: Path, free_port: int) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", port=free_port)
    connection = KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}")
    topics = Topics()
    reading = Reading(connection, topics)
    with capture_logs() as logs, reading.running():
        until(lambda: len(logs) > 0)
        assert "cannot be read" in (reading.reader.problem() or "")
        with broker:
            ensure_topics(connection, topics, bounded=True)
            with EventProducer(connection) as producer:
                producer.send(item("a"))
                producer.send(click(1, "u", "a"))
            assert reading.reader.caught_up.wait(30)
            until(lambda: len(reading.seen("u")) == 1)
            assert reading.reader.problem() is None
            time.sleep(1.5)  # the broker writes its state about once a second
        until(lambda: any(entry["event"] == "kafka_lost" for entry in logs))
        assert len(reading.seen("u")) == 1
        assert reading.reader.problem() == "Kafka does not answer; what has been read of it is served"
        with broker, EventProducer(connection) as producer:
            producer.send(click(2, "u", "a"))
            producer.flush()
            until(lambda: len(reading.seen("u")) == 2)
            assert reading.reader.problem() is None
            lost = sum(entry["event"] == "kafka_lost" for entry in logs)  # before the broker goes again
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"][:1] == ["kafka_unreachable"]
    assert lost == 1


def test_whom_it_is_told_to_forget_it_forgets_also_at_the_next_start(
    kafka_connection: KafkaConnection, topics: Topics
) -> None:
    with EventProducer(kafka_connection, topics) as producer:
        producer.send(item("a"))
        producer.send(click(1, "u", "a"))
        producer.send(click(2, "v", "a"))
        producer.flush()
        reading = Reading(kafka_connection, topics)
        with reading.running():
            until(lambda: reading.seen("u") == [0] and reading.seen("v") == [0])
            time.sleep(0.005)  # the broker's time, by which before and after are told, has whole milliseconds
            producer.send_raw(topics.control, *forget_record("u", ts_ms=1))
            producer.flush()
            until(lambda: reading.seen("u") == [])
            assert reading.seen("v") == [0]
        time.sleep(0.005)
        producer.send(click(3, "u", "a"))
        producer.flush()
    again = Reading(kafka_connection, topics)
    with again.running():
        assert again.reader.caught_up.wait(30)
        assert again.seen("v") == [0]
        assert again.seen("u") == [0], "what came after alone"


def test_a_click_of_a_clock_ahead_stays_forgotten_at_a_start_after_its_time(
    kafka_connection: KafkaConnection, topics: Topics
) -> None:
    privacy = PrivacySettings(secret=SecretStr("only-for-tests-of-forgetting"))
    settings, pseudonymise = Settings(kafka=kafka_connection, topics=topics, privacy=privacy), pseudonymiser(privacy)
    ahead_ms = time.time_ns() // 1_000_000 + 3_000
    with EventProducer(kafka_connection, topics) as producer:
        producer.send(item("a"))
        producer.flush()
    with closing(open_client(KafkaProducer, kafka_connection)) as raw:
        raw.send(topics.clicks, click(1, "u", "a").model_dump_json().encode(), key=b"u", timestamp_ms=ahead_ms)
        raw.flush()
    forget(settings, "u")
    until(lambda: time.time_ns() // 1_000_000 > ahead_ms)
    with EventProducer(kafka_connection, topics) as producer:
        producer.send(click(2, "v", "a"))
    again = Reading(kafka_connection, topics, pseudonymise=pseudonymise)
    with again.running():
        assert again.reader.caught_up.wait(30)
        assert again.seen(pseudonymise("v")) == [0]
        assert again.seen(pseudonymise("u")) == []


def test_a_click_of_the_year_2100_makes_it_forget_nobodys_click(
    kafka_connection: KafkaConnection, topics: Topics
) -> None:
    now_ms = time.time_ns() // 1_000_000
    reading = Reading(kafka_connection, topics)
    with EventProducer(kafka_connection, topics) as producer, reading.running():
        producer.send(item("a"))
        producer.flush()
        assert reading.reader.caught_up.wait(30)
        until(lambda: "a" in reading.items)
        producer.send(Click(event_id="c1", ts=now_ms, user_id="u", item_id="late"))
        for number, ts in enumerate((4_102_444_800_000, now_ms + 23 * 3_600_000)):
            producer.send(Click(event_id=f"f{number}", ts=ts, user_id="zed", item_id="a"))
        producer.flush()
        until(lambda: bool(reading.seen("zed")))
        producer.send(item("late"))
        producer.flush()
        until(lambda: reading.seen("u") == [reading.items.rows.get("late")])
        assert len(reading.seen("zed")) == 1, "the one of 2100 is refused"


def test_an_older_item_event_that_arrives_later_does_not_undo_a_block(
    kafka_connection: KafkaConnection, topics: Topics
) -> None:
    reading = Reading(kafka_connection, topics)
    with EventProducer(kafka_connection, topics) as producer, reading.running():
        producer.send(item("a", status="blocked").model_copy(update={"ts": 2}))
        producer.send(item("a"))
        producer.send(item("b"))
        producer.flush()
        until(lambda: "b" in reading.items)
        until(lambda: "a" in reading.items)
        assert reading.reader.caught_up.wait(30)
        assert reading.items._blocked[reading.items.rows["a"]]
