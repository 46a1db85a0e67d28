"""Apache Kafka killed during a replay: the updater continues by itself, and ends in the same state."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from crash_replay import CrashReplay
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from updater_shop import Shop, wait_until

from streams.connection import KafkaConnection
from streams.topics import Topics

pytestmark = pytest.mark.kafka

ENOUGH_RECORDS = 300  # for windows to close, whichever partition is the slowest


class SteadySender(threading.Thread):
    """A shop that sends its events bit by bit, each confirmed, whatever becomes of the broker."""

    def __init__(self, replay: CrashReplay) -> None:
        super().__init__(name="shop")
        self._replay = replay
        self._stop_now = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stop_now.wait(0.1):
                self._replay.send(5)
        except Exception as error:
            self.failure = error

    def finish(self) -> None:
        self._stop_now.set()
        self.join()
        assert self.failure is None


@contextmanager
def learning(replay: CrashReplay) -> Iterator[None]:
    """Events flow and an updater learns; at the end all is learnt."""
    with replay.life():
        sender = SteadySender(replay)
        sender.start()
        try:
            replay.wait_for_version(2)
            yield
            # On a fast machine outages are over before a window has closed: a record is a second of event time.
            wait_until(lambda: replay.traffic.records.total() >= ENOUGH_RECORDS, what="enough traffic")
        finally:
            sender.finish()
        replay.shop.send(*replay.traffic.later_items())


@pytest.mark.timeout(1_800)
def test_killed_and_started_again(
    mortal_apache_kafka: Any, kills: int, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    kafka, rng = mortal_apache_kafka, random.Random(5)  # noqa: S311
    replay = CrashReplay(Shop(kafka.connection, make_topics(kafka.connection, partitions=2), tmp_path), seed=5)
    with learning(replay):
        for outage in range(2 if kills < 20 else 10):
            time.sleep(rng.uniform(0.0, 1.0))
            kafka.kill()
            time.sleep(15.0 if outage % 5 == 4 else rng.uniform(0.0, 1.0))  # beyond all patience with an announcement
            kafka.start()
            replay.wait_for_version(replay.version() + 1)
    told = replay.log().read_text()
    assert told.count("kafka_back") == told.count("kafka_lost")
    assert "already closed" not in told
    replay.check()


@pytest.mark.timeout(1_800)
def test_the_leader_of_three_killed(
    kills: int, request: pytest.FixtureRequest, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    if kills < 20:
        pytest.skip("three brokers take more than a minute: run it with `make crash`, or --kills 20")
    brokers = request.getfixturevalue("apache_kafka_cluster")
    connection = KafkaConnection(bootstrap_servers=",".join(broker.connection.bootstrap_servers for broker in brokers))
    topics = make_topics(connection, partitions=2, replication_factor=3)
    replay = CrashReplay(Shop(connection, topics, tmp_path), seed=6)
    with learning(replay):
        for _ in range(3):
            led = leader(connection, topics.clicks)
            brokers[led - 1].kill()
            wait_until(lambda led=led: leader(connection, topics.clicks) != led, what="another leader")  # type: ignore[misc]
            replay.wait_for_version(replay.version() + 1)
            brokers[led - 1].start()
    replay.check()


def leader(connection: KafkaConnection, topic: str) -> int:
    """Node of the broker that leads the topic's first partition, once there is one."""
    found: list[int] = []

    def known() -> bool:
        with suppress(KafkaError), KafkaAdminClient(**connection.client_options()) as admin:
            (described,) = admin.describe_topics([topic])
            first = min(described["partitions"], key=lambda partition: partition["partition_index"])
            found.append(int(first["leader_id"]))
        return bool(found) and found[-1] > 0

    wait_until(known, what=f"a leader of {topic}")
    return found[-1]
