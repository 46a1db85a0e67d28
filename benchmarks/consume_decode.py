"""Scenario `consume-decode`: events per second of reading and decoding the log, over reading it alone.

The client and the embedded broker share the machine. The ratio is the cost of validating every event.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.measure import Measurement, alternate
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetter
from streams.decode import decode
from streams.embedded_broker import EmbeddedBroker
from streams.events import Click
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics
from streams.topics import Topics

EVENTS = 20_000
USERS = 500
PARTITIONS = 4
ROUNDS = 7
POLL_RECORDS = 500
EPOCH_MS = 1_700_000_000_000


def run(_data: Path) -> Measurement:
    """Publish clicks to a fresh broker, then read them repeatedly."""
    topics = Topics()
    with tempfile.TemporaryDirectory() as directory, EmbeddedBroker(Path(directory)) as broker:
        connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        ensure_topics(connection, topics, partitions=PARTITIONS)
        _publish(connection, topics)
        rounds = alternate(
            _reading(connection, topics, decoding=True),
            _reading(connection, topics, decoding=False),
            rounds=ROUNDS,
            names=("decoded_events_per_second", "polled_events_per_second"),
        )
    return Measurement(
        unit="of the events per second of polling alone",
        value=median(round_["ratio"] for round_ in rounds),
        target=None,
        settings={"events": EVENTS, "partitions": PARTITIONS, "poll_records": POLL_RECORDS, "broker": "embedded"},
        rounds=rounds,
    )


def _publish(connection: KafkaConnection, topics: Topics) -> None:
    with EventProducer(connection, topics) as producer:
        for number in range(EVENTS):
            producer.send(
                Click(
                    event_id=f"event-{number}",
                    ts=EPOCH_MS + number,
                    user_id=f"user-{number % USERS}",
                    session_id=f"session-{number % USERS}",
                    scenario="home",
                    item_id=f"item-{number % 4_000}",
                    position=number % 20,
                )
            )


def _reading(connection: KafkaConnection, topics: Topics, *, decoding: bool) -> Callable[[], int]:
    """Return a function that reads the topic from its beginning and returns the number of events."""

    def read() -> int:
        consumer = PartitionConsumer(connection, [topics.clicks])
        read_ = 0
        while read_ < EVENTS:
            records = consumer.poll(timeout_seconds=5.0, max_records=POLL_RECORDS)
            if not records:
                raise RuntimeError(f"only {read_} of {EVENTS} events came back")
            if decoding and any(isinstance(decode(record, topics), DeadLetter) for record in records):
                raise RuntimeError("an event did not decode")
            read_ += len(records)
        consumer.close()
        return read_

    return read
