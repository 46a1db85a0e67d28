"""The process `headwater updater`: publications, metrics, shutdown and restart."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from updater_shop import FINGERPRINT, SETTLED, START_MS, Shop, events, items, wait_until

from peft_adapters.registry.bundle import read_bundle
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.events import Click
from streams.topic_creation import ensure_topics
from streams.topics import Topics

NOTHING = dict.fromkeys(("in", *SETTLED, "pending"), 0)


@pytest.fixture
def shop(kafka_connection: KafkaConnection, topics: Topics, tmp_path: Path) -> Shop:
    """On each broker."""
    return Shop(kafka_connection, topics, tmp_path)


@pytest.fixture
def embedded(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    return Shop(connection, make_topics(connection), tmp_path)


def test_the_core_of_it(shop: Shop) -> None:
    """Events in; versions in the registry and on the topic; each event accounted for; SIGTERM publishes the rest."""
    clicks, purchases = shop.topics.clicks, shop.topics.purchases
    malformed = {b"u1": b"{oops", b"u2": b'{"user_id": "u2"}', b"u3": b"\xff\xfe"}
    late = Click(event_id="late", ts=START_MS, user_id="u1", item_id="i20")
    shop.send(*items(20), *events(90))
    with shop.process(publish_seconds=0.5) as updater:
        wait_until(lambda: updater.counts(clicks)["learnt"] == 60, what="60 clicks learnt")
        for key, value in malformed.items():
            shop.send_raw(clicks, key, value)
        shop.send_raw(purchases, b"somebody else", events(3)[2].model_dump_json().encode())
        shop.send(late, *events(10), *events(30, first=90))
        wait_until(lambda: updater.counts(clicks)["learnt"] == 80, what="80 clicks learnt")
        wait_until(lambda: updater.counts(clicks)["pending"] == 1, what="one waits for its item")
        shop.send(*items(1, first=20))
        wait_until(lambda: updater.counts(clicks)["learnt"] == 81, what="the late one learnt")
        wait_until(lambda: updater.counts(purchases)["learnt"] == 40, what="40 purchases learnt")
        counts = {
            clicks: NOTHING | {"in": 91, "learnt": 81, "dead_letter": 3, "duplicate": 7},
            purchases: NOTHING | {"in": 44, "learnt": 40, "dead_letter": 1, "duplicate": 3},
            shop.topics.items: NOTHING | {"in": 21, "learnt": 21},
            shop.topics.impressions: NOTHING,
        }
        wait_until(lambda: updater.total("in") >= 91 + 44, what="all read")
        assert {topic: updater.counts(topic) for topic in counts} == counts
        assert updater.value("headwater_dead_letters_total", reason="malformed_json") == 2
        assert updater.value("headwater_event_watermark_timestamp_seconds") == START_MS / 1_000 + 119
        wait_until(lambda: shop.latest().events_learned == 121, what="all of it published")
        published = updater.value("headwater_adapters_total", outcome="published")
        assert updater.value("headwater_adapter_version") == published
        assert updater.end() == 0

    announced, letters = shop.announced(), shop.letters()
    assert [manifest.version for manifest in announced] == list(range(1, len(announced) + 1))
    assert shop.registry.versions("home") == [manifest.version for manifest in announced]
    assert announced[-1] == shop.latest()
    assert {manifest.kind for manifest in announced[1:]} == {"delta"}
    bundles = [
        read_bundle(shop.registry.fetch("home", v, shop.directory / "fetched"), base_digest=announced[0].base_digest)
        for v in shop.registry.chain("home", shop.latest().version)
    ]
    assert [item for bundle in bundles for item in bundle.item_ids][-1] == "i20"
    assert float(bundles[-1].groups["counters"]["events"].sum()) == 121
    assert {letter.original() for letter in letters if letter.topic == clicks} == set(malformed.values())
    assert [letter.reason for letter in letters if letter.topic == purchases] == ["wrong_key"]
    assert sum(shop.committed().values()) == 21 + 91 + 44 + FINGERPRINT


class TestEnding:
    def test_sigterm_ends_with_a_last_publication_of_what_waited(self, embedded: Shop) -> None:
        embedded.send(*items(20), *events(25))
        with embedded.process(batch_events=1_000, batch_seconds=3_600.0) as updater:
            wait_until(lambda: updater.value("headwater_records_waiting") == 25 + FINGERPRINT, what="all read")
            assert updater.counts(embedded.topics.clicks) == NOTHING
            assert updater.end() == 0
        assert embedded.latest().events_learned == 25
        assert embedded.announced()[-1] == embedded.latest()
        assert embedded.checkpointed()["events_learned"] == 25
        assert "Traceback" not in updater.log()

    def test_damaged_checkpoints_are_one_clear_line(self, embedded: Shop) -> None:
        embedded.send(*items(20))
        with embedded.process() as updater:
            wait_until(lambda: bool(embedded.announced()), what="a first version")
            assert updater.end() == 0
        root = embedded.directory / "checkpoints" / "home"
        for state in root.glob("*/*/state.json"):
            state.write_text("{")
        with embedded.process() as updater:
            assert updater.ended() == 1
        (line,) = [line for line in updater.log().splitlines() if not line.startswith("{")]
        assert re.match(rf"headwater: no checkpoint in {root} can be used: ", line)
        assert len(embedded.announced()) == 1


def test_killed_again_and_again_it_learns_each_event_once(embedded: Shop) -> None:
    """SIGKILL in the middle of the stream; what it was learning then is neither lost nor learnt twice."""
    total, learnt = 120, 0
    embedded.send(*items(20))
    for kill in range(2):
        embedded.send(*events(60, first=60 * kill))
        with embedded.process(publish_seconds=0.05) as updater:
            updater.wait_for("learnt", learnt + 11)
            assert updater.end(signal.SIGKILL) == -signal.SIGKILL
        assert learnt <= embedded.checkpointed()["events_learned"] <= total
        learnt = embedded.checkpointed()["events_learned"]
    embedded.send(*events(30))  # and some of them come again
    with embedded.process() as updater:
        updater.wait_for("in", total + 30)
        updater.wait_for("learnt", total)
        assert updater.end() == 0
        (resumed,) = updater.told("resumed")
        assert resumed["events_learned"] == learnt
    assert embedded.latest().events_learned == total == sum(_events_of_each_item(embedded))
    clicks, purchases = embedded.topics.clicks, embedded.topics.purchases
    intake = embedded.checkpointed()["intake"]
    counts = {(topic, outcome): count for topic, outcome, count in intake["joiner"]["counts"]}
    assert [counts[clicks, outcome] for outcome in ("in", "learnt", "duplicate")] == [80 + 20, 80, 20]
    assert [counts[purchases, outcome] for outcome in ("in", "learnt", "duplicate")] == [40 + 10, 40, 10]
    versions = [manifest.version for manifest in embedded.announced()]
    assert versions == sorted(set(versions))


def _events_of_each_item(shop: Shop) -> list[float]:
    latest = shop.latest()
    bundle = read_bundle(shop.registry.fetch("home", latest.version, shop.directory / "f"), base_digest=None)
    return [float(count) for count in bundle.groups["counters"]["events"]]


class TestBrokerAway:
    def test_it_waits_for_it_and_goes_on_when_it_is_back_each_with_one_clear_line(
        self, tmp_path: Path, free_port: int
    ) -> None:
        connection = KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}")
        shop = Shop(connection, Topics(), tmp_path)
        with shop.process() as updater:
            wait_until(lambda: bool(updater.told("kafka_unreachable")), what="the line")
            assert updater.counts(Topics().clicks) == NOTHING  # the metrics page is there
            with EmbeddedBroker(tmp_path / "broker", port=free_port) as broker:
                ensure_topics(connection, shop.topics, bounded=True)
                shop.send(*items(20), *events(20))
                updater.wait_for("learnt", 20)
                broker.stop()
                wait_until(lambda: bool(updater.told("kafka_lost")), what="noticed")
                broker.start()
                shop.send(*events(20, first=20))
                updater.wait_for("learnt", 40)
                assert updater.end(signal.SIGINT) == 0
        (line,) = updater.told("kafka_unreachable")
        assert f"no Kafka broker answers at 127.0.0.1:{free_port}" in line["problem"]
        assert len(updater.told("kafka_reachable")) == 1
        assert len(updater.told("kafka_lost")) == len(updater.told("kafka_back")) == 1
        assert shop.latest().events_learned == 40

    def test_sigterm_while_it_waits_ends_it(self, tmp_path: Path, free_port: int) -> None:
        shop = Shop(KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}"), Topics(), tmp_path)
        with shop.process() as updater:
            wait_until(lambda: bool(updater.told("kafka_unreachable")), what="the line")
            assert updater.end(seconds=10) == 0
        assert not (tmp_path / "checkpoints").exists()

    def test_sigterm_without_a_broker_keeps_what_was_learnt_and_ends(self, tmp_path: Path) -> None:
        with EmbeddedBroker(tmp_path / "broker") as broker:
            shop = Shop(KafkaConnection(bootstrap_servers=broker.bootstrap_servers), Topics(), tmp_path)
            ensure_topics(shop.connection, shop.topics, bounded=True)
            shop.send(*items(20), *events(25))
            with shop.process(batch_events=1_000, batch_seconds=3_600.0) as updater:
                wait_until(lambda: updater.value("headwater_records_waiting") == 25 + FINGERPRINT, what="all read")
                broker.stop()
                assert updater.end() == 0
        assert updater.told("publication_failed")
        assert shop.checkpointed()["events_learned"] == shop.latest().events_learned == 25
        assert "Traceback" not in updater.log()
