"""`headwater collector` as a process: what is accepted arrives, in order, whoever dies in between."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector_process import CollectorProcess, arrived, first_copies, wait_until
from forked import run_command
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.topic_creation import ensure_topics
from streams.topics import Topics

PERSIST_SECONDS = 1.5  # the embedded broker writes what it holds about once a second


def clicks(numbers: range, *, users: int = 3) -> list[dict[str, Any]]:
    return [
        {"type": "click", "event_id": f"c{n:05d}", "ts": n, "user_id": f"u{n % users}", "item_id": "i"} for n in numbers
    ]


def expected(numbers: range, *, users: int = 3) -> dict[str, list[str]]:
    by_user: dict[str, list[str]] = {}
    for event in clicks(numbers, users=users):
        by_user.setdefault(event["user_id"], []).append(event["event_id"])
    return by_user


def deduplicated(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {user: first_copies(ids) for user, ids in found.items()}


class SteadyClient(threading.Thread):
    """Posts one click after the other until stopped, and tries again what was not accepted."""

    def __init__(self, url: Callable[[], str]) -> None:
        super().__init__()
        self.accepted = 0
        self._url = url
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.002):
            [event] = clicks(range(self.accepted, self.accepted + 1))
            try:
                answer = httpx.post(f"{self._url()}/v1/events", json=event, timeout=20)
            except httpx.TransportError:
                continue
            assert answer.status_code == 202, answer.text
            self.accepted += 1

    def finish(self) -> None:
        self._stop_now.set()
        self.join()


def set_max_message_bytes(connection: KafkaConnection, topic: str, limit_bytes: int) -> None:
    with closing(KafkaAdminClient(**connection.client_options())) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(limit_bytes)})])


@pytest.fixture
def embedded(embedded_broker: EmbeddedBroker) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)


class TestOnEachBroker:
    def test_posted_events_arrive_on_the_topic_of_their_kind_under_their_key(
        self, kafka_connection: KafkaConnection, topics: Topics, tmp_path: Path
    ) -> None:
        shown = {"request_id": "r", "scenario": "home", "items": [{"item_id": "mug", "position": 0}]}
        others: list[dict[str, Any]] = [
            {"type": "item", "event_id": "i1", "item_id": "mug", "kind": "product", "title": "Blue mug"},
            {"type": "impression", "event_id": "s1", "user_id": "ann", **shown},
            {"type": "purchase", "event_id": "p1", "user_id": "ann", "item_id": "mug"},
        ]
        with CollectorProcess(kafka_connection, topics, tmp_path) as collector:
            collector.accept(others)
            for start in range(0, 900, 300):
                collector.accept(clicks(range(start, start + 300)))
            wait_until(lambda: collector.forwarded() == 903, what="all forwarded")
            collector.accept(clicks(range(900, 901)))
            wait_until(lambda: collector.forwarded() == 904, what="one alone goes out at once", seconds=2)
            assert collector.ready() == {"status": "ready", "broker": "connected", "spool_events": 0, "spool_bytes": 0}
            assert collector.end() == 0
            assert collector.logged("forwarding_stopped") == []
            assert "Traceback" not in collector.log()
        assert arrived(kafka_connection, topics.clicks) == expected(range(901))
        assert arrived(kafka_connection, topics.items) == {"mug": ["i1"]}
        assert arrived(kafka_connection, topics.impressions) == {"ann": ["s1"]}
        assert arrived(kafka_connection, topics.purchases) == {"ann": ["p1"]}

    def test_told_to_end_it_sends_what_it_has_taken(
        self, kafka_connection: KafkaConnection, topics: Topics, tmp_path: Path
    ) -> None:
        with CollectorProcess(kafka_connection, topics, tmp_path, max_batch_events=5_000) as collector:
            wait_until(lambda: collector.ready()["broker"] == "connected", what="connected")
            collector.accept(clicks(range(4_000)))
            assert collector.end() == 0
            assert collector.logged("forwarding_ended")[0]["waiting_events"] == 0
        assert arrived(kafka_connection, topics.clicks) == expected(range(4_000))


class TestBrokerAway:
    def test_events_wait_and_go_out_in_order_when_it_is_back(self, tmp_path: Path) -> None:
        with EmbeddedBroker(tmp_path / "broker") as broker:
            connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
            topics = Topics()
            ensure_topics(connection, topics, bounded=True)
            with CollectorProcess(connection, topics, tmp_path) as collector:
                collector.accept(clicks(range(100)))
                wait_until(lambda: collector.forwarded() == 100, what="the first ones forwarded")
                time.sleep(PERSIST_SECONDS)
                broker.stop()
                for start in range(100, 2_000, 100):
                    collector.accept(clicks(range(start, start + 100)))
                wait_until(lambda: collector.ready()["broker"] == "away", what="noticed")
                assert collector.ready()["spool_events"] == 1_900
                broker.start()
                wait_until(lambda: collector.ready()["spool_events"] == 0, what="all forwarded")
                assert collector.ready()["broker"] == "connected"
                (stopped,), (resumed,) = (collector.logged(f"forwarding_{what}") for what in ("stopped", "resumed"))
                assert stopped["level"] == "warning"
                assert stopped["waiting_events"] >= 100
                assert resumed["after_seconds"] > 0
                assert collector.logged("forwarder_failed") == []
            assert deduplicated(arrived(connection, topics.clicks)) == expected(range(2_000))

    def test_health_says_so_though_nothing_is_to_be_sent(self, tmp_path: Path) -> None:
        with EmbeddedBroker(tmp_path / "broker") as broker:
            connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
            with CollectorProcess(connection, Topics(), tmp_path) as collector:
                wait_until(lambda: collector.ready()["broker"] == "connected", what="connected")
                broker.stop()
                wait_until(lambda: collector.ready()["broker"] == "away", what="noticed")
                broker.start()
                wait_until(lambda: collector.ready()["broker"] == "connected", what="back")
                assert len(collector.logged("forwarding_stopped")) == len(collector.logged("forwarding_resumed")) == 1

    @pytest.mark.kafka
    def test_apache_kafka_killed_under_a_steady_stream(self, mortal_apache_kafka: Any, tmp_path: Path) -> None:
        kafka, topics = mortal_apache_kafka, Topics()
        ensure_topics(kafka.connection, topics)
        with CollectorProcess(kafka.connection, topics, tmp_path) as collector:
            client = SteadyClient(lambda: str(collector.client.base_url).rstrip("/"))
            client.start()
            wait_until(lambda: collector.forwarded() > 100, what="a stream")
            kafka.kill()
            wait_until(lambda: collector.ready()["broker"] == "away", what="noticed")
            kafka.start(wait=False)
            wait_until(lambda: collector.ready()["broker"] == "connected", what="back")
            client.finish()
            wait_until(lambda: collector.ready()["spool_events"] == 0, what="all forwarded")
            assert len(collector.logged("forwarding_stopped")) == len(collector.logged("forwarding_resumed")) == 1
        assert deduplicated(arrived(kafka.connection, topics.clicks)) == expected(range(client.accepted))

    @pytest.mark.kafka
    def test_what_a_topic_refuses_holds_up_what_is_behind_it_until_it_is_mended(
        self, apache_kafka: Any, make_topics: Callable[..., Topics], tmp_path: Path
    ) -> None:
        connection = apache_kafka.connection
        topics = make_topics(connection)
        item = {"type": "item", "event_id": "large", "item_id": "i", "kind": "ad", "title": "x" * 5_000}
        set_max_message_bytes(connection, topics.items, 2_000)
        with CollectorProcess(connection, topics, tmp_path) as collector:
            collector.accept([*clicks(range(5)), item, *clicks(range(5, 10))])
            wait_until(lambda: collector.ready()["broker"] == "away", what="noticed")
            (stopped,) = collector.logged("forwarding_stopped")
            assert topics.items in stopped["problem"]
            assert "MessageSizeTooLarge" in stopped["problem"]
            set_max_message_bytes(connection, topics.items, 1_000_000)
            wait_until(lambda: collector.ready()["spool_events"] == 0, what="all forwarded")
            assert collector.logged("forwarder_failed") == []
        assert arrived(connection, topics.items) == {"i": ["large"]}
        assert deduplicated(arrived(connection, topics.clicks)) == expected(range(10))

    def test_full_it_answers_429_and_goes_on_once_there_is_room(self, tmp_path: Path, free_port: int) -> None:
        connection, topics = KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}"), Topics()
        small = {"spool_max_events": 250, "max_batch_events": 100}
        with CollectorProcess(connection, topics, tmp_path, **small) as collector:
            collector.accept(clicks(range(100)))
            collector.accept(clicks(range(100, 200)))
            refused = collector.client.post("/v1/events", json={"events": clicks(range(200, 300))})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            with EmbeddedBroker(tmp_path / "broker", port=free_port):
                wait_until(lambda: collector.ready()["spool_events"] == 0, what="room")
                collector.accept(clicks(range(200, 300)))
                wait_until(lambda: collector.forwarded() == 300, what="all forwarded")
                assert arrived(connection, topics.clicks) == expected(range(300))
                assert collector.end() == 0


class TestKilled:
    def test_what_was_accepted_without_a_broker_is_delivered_by_the_next_one(
        self, embedded: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path, free_port: int
    ) -> None:
        topics = make_topics(embedded)
        nowhere = KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}")
        with CollectorProcess(nowhere, topics, tmp_path) as collector:
            collector.accept(clicks(range(500)))
            assert collector.end(signal.SIGKILL) == -signal.SIGKILL
        with CollectorProcess(nowhere, topics, tmp_path) as collector:
            assert collector.ready()["spool_events"] == 500
            collector.accept(clicks(range(500, 800)))
            began = time.monotonic()
            assert collector.end() == 0  # with the broker away there is nothing to wait for
            assert time.monotonic() - began < 4
            (ended,) = collector.logged("forwarding_ended")
            assert ended["waiting_events"] == 800
        with CollectorProcess(embedded, topics, tmp_path) as collector:
            wait_until(lambda: collector.forwarded() == 800, what="all forwarded")
        assert arrived(embedded, topics.clicks) == expected(range(800))

    def test_again_and_again_under_a_steady_stream(
        self, embedded: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path
    ) -> None:
        topics = make_topics(embedded)
        url = "http://127.0.0.1:1"
        client = SteadyClient(lambda: url)
        client.start()
        try:
            for _ in range(4):
                with CollectorProcess(embedded, topics, tmp_path) as collector:
                    url = str(collector.client.base_url).rstrip("/")
                    before = client.accepted
                    wait_until(lambda before=before: client.accepted > before + 60, what="a stream")  # type: ignore[misc]
                    collector.end(signal.SIGKILL)
        finally:
            client.finish()
        with CollectorProcess(embedded, topics, tmp_path) as collector:
            wait_until(lambda: collector.ready()["spool_events"] == 0, what="all forwarded")
        found = deduplicated(arrived(embedded, topics.clicks))
        sent = expected(range(client.accepted))
        # The last request before the end may have been taken without its answer getting through.
        assert {user: ids[: len(sent[user])] for user, ids in found.items()} == sent
        assert sum(map(len, found.values())) - client.accepted in (0, 1)


def test_a_spool_in_use_is_one_clear_line(embedded: KafkaConnection, tmp_path: Path) -> None:
    with CollectorProcess(embedded, Topics(), tmp_path) as collector:
        second = run_command(["collector"], env=collector.env)
        assert second.returncode == 1
        assert second.stderr.startswith("headwater: the spool ")
        assert "no other collector has it" in second.stderr
        assert "Traceback" not in second.stderr
        assert collector.client.get("/healthz").status_code == 200
