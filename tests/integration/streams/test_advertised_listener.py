"""A broker that advertises an unusable address: errors name the host, and processes wait for it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from structlog.testing import capture_logs

from streams import EventProducer, Topics
from streams.connection import unreachable_reason, wait_for_broker
from streams.consumer import PartitionConsumer
from streams.errors import BrokerUnreachableError
from streams.lookup import RecordLookup
from streams.topic_creation import ensure_topics

HOST = "kafka.invalid:39292"
NAMED = rf"it advertises {HOST}, which cannot be connected to \([A-Z]"
GOOD = "PLAINTEXT://127.0.0.1:@PORT@"

pytestmark = pytest.mark.kafka


def start_advertising(broker: Any, listener: str) -> None:
    """Start or restart a broker with another advertised listener."""
    broker.stop()
    broker.configure(f"advertised.listeners={listener}\n")
    broker.start(wait=False)


@pytest.fixture
def misadvertised(mortal_apache_kafka: Any) -> Any:
    """Yield a broker whose advertised host has no address."""
    start_advertising(mortal_apache_kafka, f"PLAINTEXT://{HOST}")
    deadline = time.monotonic() + 60
    while "advertises" not in (unreachable_reason(mortal_apache_kafka.connection) or ""):
        assert time.monotonic() < deadline, "the broker did not start"
        time.sleep(0.1)
    return mortal_apache_kafka


@pytest.mark.parametrize(
    "open_one",
    [
        RecordLookup,
        EventProducer,
        lambda connection: PartitionConsumer(connection, ["a"]),
        lambda connection: ensure_topics(connection, Topics()),
    ],
    ids=["lookup", "producer", "consumer", "topics"],
)
def test_each_client_names_the_host(misadvertised: Any, open_one: Callable[[Any], Any]) -> None:
    threads = threading.active_count()
    with pytest.raises(BrokerUnreachableError, match=NAMED):
        open_one(misadvertised.connection)
    deadline = time.monotonic() + 10
    while threading.active_count() > threads:
        assert time.monotonic() < deadline, "the client's threads go on"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("listener", "named"),
    [
        ("PLAINTEXT://127.0.0.1:1", r"it advertises 127\.0\.0\.1:1, which cannot be connected to \(Connection refused"),
        ("PLAINTEXT://a..b:9092", r"it advertises a\.\.b:9092, which cannot be connected to \("),
    ],
    ids=["refused", "no host name"],
)
def test_other_addresses_are_named_too(mortal_apache_kafka: Any, listener: str, named: str) -> None:
    start_advertising(mortal_apache_kafka, listener)
    deadline = time.monotonic() + 60
    while "advertises" not in (unreachable_reason(mortal_apache_kafka.connection) or ""):
        assert time.monotonic() < deadline, "the broker did not start"
        time.sleep(0.1)
    with pytest.raises(BrokerUnreachableError, match=named):
        wait_for_broker(mortal_apache_kafka.connection, timeout_seconds=0.5)


def test_it_is_waited_for_with_one_line(misadvertised: Any) -> None:
    came: list[bool] = []
    with capture_logs() as logs:
        waiting = threading.Thread(target=lambda: came.append(wait_for_broker(misadvertised.connection)))
        waiting.start()
        time.sleep(2)
        assert not came
        start_advertising(misadvertised, GOOD)
        waiting.join(60)
    assert came == [True]
    assert [entry["event"] for entry in logs] == ["kafka_unreachable", "kafka_reachable"]
    assert HOST in logs[0]["problem"]


class Process:
    """Start a command that is expected to wait."""

    def __init__(self, directory: Path, connection: Any, *arguments: str) -> None:
        self._output = directory / f"{arguments[0]}.log"
        with self._output.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", "from services.cli import main; main()", *arguments],
                cwd=directory,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
                    "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
                    "HEADWATER_UPDATER__METRICS_PORT": "0",
                    "HEADWATER_SCORER__PORT": "0",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def output(self) -> str:
        return self._output.read_text()


def wait_for(text: str, *processes: Process) -> None:
    """Wait until each of some processes has logged a text."""
    deadline = time.monotonic() + 120
    while not all(text in process.output() for process in processes):
        assert time.monotonic() < deadline, [process.output() for process in processes]
        time.sleep(0.1)


@pytest.fixture
def start(misadvertised: Any, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def process(*arguments: str) -> Process:
        started.append(Process(tmp_path, misadvertised.connection, *arguments))
        return started[-1]

    yield process
    for one in started:
        one.popen.kill()
        one.popen.wait()


def test_commands_name_the_host_and_processes_go_on_when_it_is_put_right(
    misadvertised: Any, start: Callable[..., Process], tmp_path: Path
) -> None:
    event = {"event_id": "e", "ts": 1_700_000_000_000, "user_id": "u", "item_id": "i", "type": "click"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    updater, scorer = start("updater"), start("scorer")
    wait_for(HOST, updater, scorer)  # they take longer to start than the commands wait
    publish, letters = start("publish", "events.jsonl"), start("dead-letters", "list")
    wait_for(HOST, publish, letters)
    start_advertising(misadvertised, GOOD)
    wait_for("kafka_reachable", updater, scorer)
    assert updater.popen.poll() is scorer.popen.poll() is None
    for process in (updater, scorer, publish, letters):
        assert "Traceback" not in process.output()
    for process in (updater, scorer):
        assert process.output().count(HOST) == 1, process.output()


def test_a_single_broker_that_is_misadvertised_holds_up_only_what_it_leads(
    apache_kafka_cluster: list[Any],
) -> None:
    first, _, third = apache_kafka_cluster
    topics = Topics.under("misadvertised")
    with closing(KafkaAdminClient(**first.connection.client_options())) as admin:
        leaders = {name: 3 if name == topics.clicks else 1 for name in topics.names()}
        admin.create_topics(
            {
                name: {"assignments": {0: [leader]}, "configs": {"min.insync.replicas": 1}}
                for name, leader in leaders.items()
            }
        )
        admin.wait_for_topics(topics.names())
    with EventProducer(first.connection, topics) as producer:
        for name in (topics.clicks, topics.purchases):
            producer.send_raw(name, b"u", b"1")
    third.stop()
    third.configure(f"{third.properties()}advertised.listeners=PLAINTEXT://{HOST}\n")
    third.start(wait=False)
    wait_until_advertised(first.connection)
    with (
        capture_logs() as logs,
        closing(PartitionConsumer(first.connection, [topics.clicks, topics.purchases])) as consumer,
    ):
        assert list(consumer.problems()) == [f"{topics.clicks}/0"]
        assert [record.topic for record in consumer.poll(10)] == [topics.purchases]
        assert not consumer.is_broker_lost
        assert [entry["advertised"] for entry in logs if entry["event"] == "leader_unreachable"] == [HOST]
        third.stop()
        third.configure(third.properties().replace(HOST, f"127.0.0.1:{third.port}"))
        third.start(wait=False)
        deadline = time.monotonic() + 90
        records: list[Any] = []
        while not records:
            assert time.monotonic() < deadline, consumer.problems()
            records = consumer.poll(0.5)
        assert [record.topic for record in records] == [topics.clicks]


def wait_until_advertised(connection: Any) -> None:
    """Wait until the cluster's metadata contain the unusable address."""
    deadline = time.monotonic() + 60
    while True:
        with closing(KafkaAdminClient(**connection.client_options())) as admin:
            if any(broker.host == HOST.split(":")[0] for broker in admin._manager.cluster.brokers()):
                return
        assert time.monotonic() < deadline, "the broker did not start"
        time.sleep(0.2)
