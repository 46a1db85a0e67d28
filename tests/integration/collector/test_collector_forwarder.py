"""From the spool to Kafka, step by step: what has not happened when a step fails."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from collector_process import arrived, wait_until
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.collector.forwarder import CHUNK_EVENTS, Forwarder
from services.collector.spool import Spool, SpoolEntry, SpoolError, SpoolRecord
from services.metrics.collector import CollectorMetrics
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.topics import Topics


class FailingSpool(Spool):
    """A spool whose disk or code fails a given number of times."""

    removals_that_fail = 0
    faults_of_ours = 0

    def remove_through(self, waiting: Sequence[SpoolEntry]) -> None:
        if self.removals_that_fail:
            self.removals_that_fail -= 1
            raise SpoolError("the spool cannot be used: disk I/O error")
        super().remove_through(waiting)

    def oldest(self, *, max_events: int, max_bytes: int) -> list[SpoolEntry]:
        if self.faults_of_ours:
            self.faults_of_ours -= 1
            raise ZeroDivisionError
        return super().oldest(max_events=max_events, max_bytes=max_bytes)


@pytest.fixture
def connection(embedded_broker: EmbeddedBroker) -> KafkaConnection:
    return KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)


@pytest.fixture
def topics(connection: KafkaConnection, make_topics: Callable[..., Topics]) -> Topics:
    return make_topics(connection)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[FailingSpool]:
    with closing(FailingSpool(tmp_path / "spool.db", max_events=10_000, max_bytes=10**8)) as spool:
        yield spool


def clicks(numbers: range) -> list[SpoolRecord]:
    return [SpoolRecord("click", b"u", f'{{"event_id": "{number}"}}'.encode()) for number in numbers]


def ids(numbers: range) -> list[str]:
    return [str(number) for number in numbers]


@contextmanager
def forwarding(
    spool: Spool, connection: KafkaConnection, topics: Topics, *, grace_seconds: float = 5.0
) -> Iterator[tuple[Forwarder, Callable[[], float | None]]]:
    series = CollectorRegistry()
    forwarder = Forwarder(spool, connection, topics, CollectorMetrics(series))
    with forwarder.running(grace_seconds=grace_seconds):
        yield forwarder, lambda: series.get_sample_value("headwater_collector_forwarded_total", {"kind": "click"})


def test_chunk_by_chunk_everything_goes_out_once(
    spool: FailingSpool, connection: KafkaConnection, topics: Topics
) -> None:
    total = range(2 * CHUNK_EVENTS + 100)
    spool.append(clicks(total))
    with forwarding(spool, connection, topics) as (forwarder, forwarded):
        wait_until(lambda: len(spool) == 0, what="all forwarded")
        spool.append(clicks(range(len(total), len(total) + 1)))
        forwarder.wake()
        wait_until(lambda: len(spool) == 0, what="the late one too", seconds=2)
        assert forwarder.problem is None
        assert forwarded() == len(total) + 1
    assert arrived(connection, topics.clicks) == {"u": [*ids(total), str(len(total))]}


def test_confirmed_but_not_removed_is_not_sent_again(
    spool: FailingSpool, connection: KafkaConnection, topics: Topics
) -> None:
    """As on a full disk: forwarding pauses until the spool can note its progress."""
    spool.append(clicks(range(10)))
    spool.removals_that_fail = 2
    with capture_logs() as lines, forwarding(spool, connection, topics) as (forwarder, forwarded):
        wait_until(lambda: forwarder.waits_for_disk, what="a pause for the disk")
        assert forwarder.problem == "the spool cannot be used: disk I/O error"
        spool.append(clicks(range(10, 12)))
        wait_until(lambda: len(spool) == 0, what="all forwarded")
        wait_until(lambda: forwarded() == 12, what="counted once")
        assert not forwarder.waits_for_disk
    assert arrived(connection, topics.clicks) == {"u": ids(range(12))}
    events = [line["event"] for line in lines if line["event"].startswith("forward")]
    assert events == ["forwarding_stopped", "forwarding_resumed", "forwarding_ended"]


def test_a_fault_of_ours_is_logged_and_the_thread_goes_on(
    spool: FailingSpool, connection: KafkaConnection, topics: Topics
) -> None:
    spool.append(clicks(range(10)))
    spool.faults_of_ours = 1
    with capture_logs() as lines, forwarding(spool, connection, topics):
        wait_until(lambda: len(spool) == 0, what="all forwarded")
    assert arrived(connection, topics.clicks) == {"u": ids(range(10))}
    (failed,) = [line for line in lines if line["event"] == "forwarder_failed"]
    assert failed["exc_info"]


def test_unconfirmed_is_not_removed(tmp_path: Path, spool: FailingSpool) -> None:
    """The broker goes away over the grace at the end: what it has not confirmed stays, in order."""
    with EmbeddedBroker(tmp_path / "broker") as broker:
        connection, topics = KafkaConnection(bootstrap_servers=broker.bootstrap_servers), Topics()
        with forwarding(spool, connection, topics, grace_seconds=0.5) as (forwarder, forwarded):
            spool.append(clicks(range(5)))
            wait_until(lambda: forwarded() == 5, what="connected")
            broker.stop()
            spool.append(clicks(range(5, 10)))
            forwarder.wake()
            began = time.monotonic()
        assert time.monotonic() - began < 3
    assert forwarded() == 5
    assert [entry.record for entry in spool.oldest(max_events=100, max_bytes=10**6)] == clicks(range(5, 10))
    assert forwarder.problem is not None


def test_topics_that_are_missing_are_made(spool: FailingSpool, connection: KafkaConnection) -> None:
    topics = Topics(clicks="collector.made.clicks")
    spool.append(clicks(range(3)))
    with forwarding(spool, connection, topics):
        wait_until(lambda: len(spool) == 0, what="all forwarded")
    assert arrived(connection, topics.clicks) == {"u": ids(range(3))}
