"""Brokers that are lost, return, or refuse the client."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from streams import Click, EventProducer, KafkaConnection, Topics
from streams.connection import wait_for_broker
from streams.consumer import PartitionConsumer
from streams.embedded_broker import EmbeddedBroker
from streams.errors import BrokerUnreachableError, DeliveryError, EmbeddedBrokerError, TopicError
from streams.topic_creation import ensure_topics

NOWHERE = KafkaConnection(bootstrap_servers="127.0.0.1:1")


def click(number: int) -> Click:
    return Click(event_id=f"e-{number}", ts=number, user_id=f"u-{number % 9}", item_id="i-1")


def connection_to(broker: EmbeddedBroker) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=broker.bootstrap_servers)


def send(connection: KafkaConnection, numbers: range) -> None:
    with EventProducer(connection) as producer:
        for number in numbers:
            producer.send(click(number))


class SteadyProducer(threading.Thread):
    """Send events until `stop` is set."""

    def __init__(self, connection: KafkaConnection) -> None:
        super().__init__()
        self.delivered: list[str] = []
        self.failed: list[Exception] = []
        self._connection = connection
        self._stop_now = threading.Event()

    def run(self) -> None:
        def note(delivery: Any) -> None:
            if delivery.error is None:
                self.delivered.append(delivery.event.event_id)
            else:
                self.failed.append(delivery.error)

        with EventProducer(self._connection, on_delivery=note) as producer:
            number = 0
            while not self._stop_now.wait(0.002):
                producer.send(click(number))
                number += 1
            producer.flush(30)

    def finish(self) -> None:
        self._stop_now.set()
        self.join()


@pytest.mark.kafka
def test_killed_broker_loses_and_repeats_nothing(mortal_apache_kafka: Any) -> None:
    kafka, topics = mortal_apache_kafka, Topics()
    ensure_topics(kafka.connection, topics)
    producer = SteadyProducer(kafka.connection)
    read: list[bytes | None] = []

    def read_for(consumer: PartitionConsumer, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            read.extend(record.value for record in consumer.poll(0.1))

    with capture_logs() as lines, closing(PartitionConsumer(kafka.connection, [topics.clicks])) as consumer:
        producer.start()
        read_for(consumer, 1)
        before = len(read)
        kafka.kill()
        read_for(consumer, 2)
        kafka.start(wait=False)
        deadline = time.monotonic() + 40
        while len(read) < before + 500 and time.monotonic() < deadline:
            read_for(consumer, 0.5)
        producer.finish()
        while sum(consumer.lag().values()):
            read_for(consumer, 0.1)
        assert consumer.gaps == []
    assert producer.failed == []
    assert before > 100
    assert sorted(Click.model_validate_json(value or b"").event_id for value in read) == sorted(producer.delivered)
    assert [line["event"] for line in lines] == ["kafka_lost", "kafka_back"]


def test_embedded_broker_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "data")
    with broker:
        ensure_topics(connection_to(broker), Topics(), bounded=True)
        send(connection_to(broker), range(500))
        address = broker.bootstrap_servers
    assert broker.pid is None
    with broker, closing(PartitionConsumer(connection_to(broker), [Topics().clicks])) as consumer:
        assert broker.bootstrap_servers == address
        assert sum(consumer.end_offsets().values()) == 500
        assert len(consumer.poll(5)) > 0


def test_reader_follows_a_broker_that_lost_its_tail(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "data")
    state = tmp_path / "data" / "kafka.json"
    topics = Topics()
    with broker:
        ensure_topics(connection_to(broker), topics, partitions=1, bounded=True)
        send(connection_to(broker), range(10))
    tail_lost = state.read_bytes()
    with broker:
        send(connection_to(broker), range(10, 15))
        with capture_logs() as lines, closing(PartitionConsumer(connection_to(broker), [topics.clicks])) as consumer:
            while consumer.positions()[topics.clicks, 0] < 15:
                consumer.poll(1)
            broker.stop()
            state.write_bytes(tail_lost)
            consumer.poll(1.5)
            broker.start()
            while not consumer.gaps:
                consumer.poll(0.5)
            send(connection_to(broker), range(20, 23))
            assert [record.offset for record in consumer.poll(5)][:1] == [10]
        (gap,) = consumer.gaps
    assert (gap.wanted, gap.resumed, gap.log_end) == (15, 10, 10)
    told = [line["event"] for line in lines if line["event"] != "embedded_broker_started"]
    assert told == ["kafka_lost", "kafka_back", "log_gap"]


def test_what_the_client_had_in_hand_when_it_failed_is_read_again(
    embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected: the client takes records out of its buffers, advances its position, and then times out."""
    connection = connection_to(embedded_broker)
    topics = Topics.under("in-hand")
    ensure_topics(connection, topics, partitions=1, bounded=True)
    with (
        EventProducer(connection, topics) as producer,
        closing(PartitionConsumer(connection, [topics.clicks])) as reader,
    ):
        fetcher = reader._client._consumer._fetcher
        fetched = fetcher.fetched_records
        lost: list[Any] = []

        def fails_once(*arguments: Any, **named: Any) -> Any:
            records, partial = fetched(*arguments, **named)
            if records and not lost:
                lost.append(records)
                raise KafkaTimeoutError("injected")
            return records, partial

        monkeypatch.setattr(fetcher, "fetched_records", fails_once)
        for number in range(3):
            producer.send(click(number))
        producer.flush()
        read: list[int] = []
        deadline = time.monotonic() + 20
        while len(read) < 3 and time.monotonic() < deadline:
            read += [record.offset for record in reader.poll(0.5)]
    assert lost
    assert read == [0, 1, 2]


def test_a_reader_whose_client_is_stuck_goes_on_with_a_new_one(
    embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected: the client sends no more fetch requests."""
    monkeypatch.setattr("streams.consumer.STALLED_CHECKS", 2)
    connection = connection_to(embedded_broker)
    topics = Topics.under("stuck")
    ensure_topics(connection, topics, partitions=1, bounded=True)
    with (
        EventProducer(connection, topics) as producer,
        closing(PartitionConsumer(connection, [topics.clicks])) as reader,
    ):
        producer.send(click(0))
        read = reader.poll(10)
        monkeypatch.setattr(reader._client._consumer._fetcher, "_create_fetch_requests", dict)
        read += reader.poll(0.5)  # what was asked for before
        producer.send(click(1))
        producer.flush()
        with capture_logs() as lines:
            read += reader.poll(20)
    assert [record.offset for record in read] == [0, 1]
    assert [line["event"] for line in lines] == ["consumer_stalled"]


def test_one_directory_is_for_one_broker(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        with pytest.raises(EmbeddedBrokerError, match="in use by one broker only"):
            EmbeddedBroker(tmp_path).start()
        with pytest.raises(EmbeddedBrokerError, match="already running"):
            broker.start()


def test_taken_port_is_reported_and_the_directory_freed(tmp_path: Path, embedded_broker: EmbeddedBroker) -> None:
    port = int(embedded_broker.bootstrap_servers.rpartition(":")[2])
    with pytest.raises(EmbeddedBrokerError, match=r"did not start: .*port"):
        EmbeddedBroker(tmp_path, port=port).start()
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.pid is not None


def test_embedded_broker_ends_with_its_parent(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, time
from streams.embedded_broker import EmbeddedBroker
broker = EmbeddedBroker(pathlib.Path({str(tmp_path)!r})).start()
print("pid", broker.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid"))
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{pid}/cmdline").exists():
        if not Path(f"/proc/{pid}/cmdline").read_bytes():  # a zombie that nobody has reaped yet
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists(), "the broker outlived its parent"


class TestUnreachable:
    def test_one_clear_line_then_retries_with_backoff(self, monkeypatch: pytest.MonkeyPatch) -> None:
        attempts: list[float] = []

        def gone(connection: KafkaConnection) -> str:
            attempts.append(time.monotonic())
            return "gone"

        monkeypatch.setattr("streams.connection.unreachable_reason", gone)
        with capture_logs() as lines, pytest.raises(BrokerUnreachableError):
            wait_for_broker(NOWHERE, timeout_seconds=1.6)
        pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert pauses == pytest.approx([0.2, 0.4, 0.8], abs=0.1)
        assert [line["event"] for line in lines] == ["kafka_unreachable"]

    def test_the_line_has_address_reason_and_remedy(self) -> None:
        with capture_logs() as lines, pytest.raises(BrokerUnreachableError):
            wait_for_broker(NOWHERE, timeout_seconds=0.5)
        (line,) = lines
        assert line["log_level"] == "warning"
        assert line["problem"] == (
            "no Kafka broker answers at 127.0.0.1:1: Connection refused; "
            "check `bootstrap_servers`, the security settings, the broker's `advertised.listeners`, and that it runs"
        )

    def test_stop_ends_the_wait(self) -> None:
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        assert not wait_for_broker(NOWHERE, stop=stop)
        assert time.monotonic() - began < 2

    def test_one_line_when_it_comes(self, tmp_path: Path, free_port: int) -> None:
        broker = EmbeddedBroker(tmp_path, port=free_port)
        nearby = KafkaConnection(bootstrap_servers=f"127.0.0.1:{free_port}")
        waiting = threading.Thread(target=wait_for_broker, args=[nearby], kwargs={"timeout_seconds": 10})
        with capture_logs() as lines:
            waiting.start()
            time.sleep(0.3)
            with broker:
                waiting.join()
        told = [line["event"] for line in lines if line["event"] != "embedded_broker_started"]
        assert told == ["kafka_unreachable", "kafka_reachable"]

    @pytest.mark.parametrize("build", [EventProducer, lambda connection: PartitionConsumer(connection, ["a"])])
    def test_clients_name_the_address_at_once(self, build: Any) -> None:
        began = time.monotonic()
        with pytest.raises(BrokerUnreachableError, match=r"127\.0\.0\.1:1: Connection refused"):
            build(NOWHERE)
        assert time.monotonic() - began < 1

    def test_commit_to_a_lost_broker_is_logged(self, tmp_path: Path) -> None:
        with EmbeddedBroker(tmp_path) as broker:
            ensure_topics(connection_to(broker), Topics(), bounded=True)
            consumer = PartitionConsumer(connection_to(broker), [Topics().clicks], group_id="g")
            broker.stop()
            with capture_logs() as lines:
                consumer.commit(consumer.positions())
            with pytest.raises(BrokerUnreachableError):
                consumer.end_offsets(timeout_seconds=0.3)
            consumer.close()
        assert [line["event"] for line in lines] == ["offsets_not_committed"]
        assert "None" not in lines[0]["problem"]

    def test_unconfirmed_events_are_raised_and_counted(self, tmp_path: Path) -> None:
        with EmbeddedBroker(tmp_path) as broker:
            ensure_topics(connection_to(broker), Topics(), bounded=True)
            producer = EventProducer(connection_to(broker))
            producer.send(click(1))
            producer.flush(5)
            broker.stop()
            producer.send(click(2))
            with pytest.raises(
                DeliveryError, match=r"1 records not confirmed within 0\.3 s: 1 of topic 'headwater\.clicks'"
            ):
                producer.flush(0.3)
            with pytest.raises(DeliveryError, match="not confirmed"):
                producer.close(0.1)
        deadline = time.monotonic() + 5
        while producer.failed == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (producer.delivered, producer.failed) == (1, 1)

    def test_closed_clients_of_a_lost_broker_leave_no_thread(self, tmp_path: Path) -> None:
        before = set(threading.enumerate())
        with EmbeddedBroker(tmp_path) as broker:
            ensure_topics(connection_to(broker), Topics(), bounded=True)
            producer = EventProducer(connection_to(broker))
            consumer = PartitionConsumer(connection_to(broker), [Topics().clicks], group_id="g")
            consumer.commit(consumer.positions())
            broker.stop()
            producer.send(click(1))
            with pytest.raises(DeliveryError):
                producer.close(0.1)
            consumer.close()
        assert set(threading.enumerate()) <= before


@pytest.mark.kafka
class TestTurnedAway:
    def test_wrong_password_is_hinted_at(self, apache_kafka_sasl_ssl: Any) -> None:
        wrong = KafkaConnection(**apache_kafka_sasl_ssl.connection.model_dump() | {"sasl_password": "wrong"})
        with pytest.raises(BrokerUnreachableError, match=r"a wrong `sasl_username` or `sasl_password`"):
            wait_for_broker(wrong, timeout_seconds=1)

    def test_refused_clients_leave_no_thread(self, apache_kafka_sasl_ssl: Any) -> None:
        before = set(threading.enumerate())
        wrong = KafkaConnection(**apache_kafka_sasl_ssl.connection.model_dump() | {"sasl_password": "wrong"})
        with pytest.raises(BrokerUnreachableError):
            wait_for_broker(wrong, timeout_seconds=1)
        assert set(threading.enumerate()) <= before

    def test_unknown_authority_is_named(self, apache_kafka_sasl_ssl: Any) -> None:
        strangers = KafkaConnection(**apache_kafka_sasl_ssl.connection.model_dump() | {"ssl_cafile": None})
        with pytest.raises(BrokerUnreachableError, match=r"(?i)certificate verify failed"):
            wait_for_broker(strangers, timeout_seconds=1)

    def test_user_without_rights_cannot_read(self, apache_kafka_sasl_ssl: Any, make_topics: Any) -> None:
        topics = make_topics(apache_kafka_sasl_ssl.connection)
        nobody = KafkaConnection(**apache_kafka_sasl_ssl.connection.model_dump() | {"sasl_username": "nobody"})
        with closing(PartitionConsumer(nobody, [topics.clicks])) as consumer:
            assert "may not be read" in consumer.problems()[topics.clicks]
        with pytest.raises(TopicError, match=r"(?i)authorization"):
            ensure_topics(nobody, Topics(clicks="another.topic"))
        with pytest.raises(DeliveryError, match=r"(?i)authorization"), EventProducer(nobody, topics) as producer:
            producer.send(click(1))
