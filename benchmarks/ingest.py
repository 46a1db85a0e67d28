"""Scenario `ingest`: events per second of reading, decoding, validating, deduplicating and joining, over reading alone.

The events are those of the data directory, in order; with `--data` that has impressions and clicks the joiner has work.
Client and embedded broker share the machine. The joiner's state is written to disk and committed at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.measure import Measurement, alternate, data_settings
from services.data.dataset import read_events, read_items
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.decode import decode
from streams.embedded_broker import EmbeddedBroker
from streams.events import SHOPPER_EVENTS, Event
from streams.join_store import JoinStore
from streams.joiner import Joiner
from streams.privacy import Pseudonymiser
from streams.producer import EventProducer
from streams.record import Record
from streams.topic_creation import ensure_topics
from streams.topics import Topics
from streams.watermarks import Watermarks

EVENTS = 40_000
PARTITIONS = 4
ROUNDS = 7
POLL_RECORDS = 500
CLICK_WINDOW_SECONDS = 60.0


def run(data: Path) -> Measurement:
    """Publish the events of the data to a fresh broker, then read them repeatedly."""
    topics = Topics()
    events = list(islice(read_events(data / "events.csv.gz"), EVENTS))
    known = {item.item_id for item in read_items(data / "items.csv.gz")}
    with tempfile.TemporaryDirectory() as directory, EmbeddedBroker(Path(directory) / "broker") as broker:
        connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        ensure_topics(connection, topics, partitions=PARTITIONS)
        with EventProducer(connection, topics) as producer:
            for event in events:
                producer.send(event)
        rounds = alternate(
            lambda: _ingest(connection, topics, known, events, Path(directory)),
            lambda: _read(connection, topics, events, lambda _: None),
            rounds=ROUNDS,
            names=("ingested_events_per_second", "read_events_per_second"),
        )
    kinds = {kind: sum(kind == event.KIND for event in events) for kind in ("impression", "click", "purchase")}
    return Measurement(
        unit="of the events per second of reading bytes",
        value=median(round_["ratio"] for round_ in rounds),
        target=0.5,
        settings={**data_settings(data), "events": kinds, "partitions": PARTITIONS, "broker": "embedded"},
        rounds=rounds,
    )


def _ingest(connection: KafkaConnection, topics: Topics, known: set[str], events: list[Event], directory: Path) -> int:
    (directory / "join.sqlite").unlink(missing_ok=True)
    store = JoinStore(directory / "join.sqlite")
    joiner = Joiner(
        is_known=known.__contains__,
        store=store,
        pseudonymise=Pseudonymiser(b"of the benchmark"),
        click_window_seconds=CLICK_WINDOW_SECONDS,
    )
    watermarks = Watermarks()

    def take(records: list[Record]) -> None:
        for record in records:
            decoded = decode(record, topics)
            if not isinstance(decoded, list):
                raise RuntimeError(f"an event did not decode: {decoded.error}")
            for event in decoded:
                if isinstance(event, SHOPPER_EVENTS):
                    at = record.topic, record.partition
                    watermarks.observe(at, event_ms=event.ts, log_ms=record.timestamp_ms)
                    joiner.offer(event, publish_ts_ms=record.timestamp_ms, topic=record.topic)
        joiner.advance(watermarks.advance())

    done = _read(connection, topics, events, take)
    store.commit(checkpoint="1")
    store.close()
    taken_in = sum(joiner.counts(topic)["in"] for topic in topics.names())
    if taken_in != len(events):
        raise RuntimeError(f"{taken_in} of {len(events)} events came to the joiner")
    return done


def _read(
    connection: KafkaConnection, topics: Topics, events: list[Event], take: Callable[[list[Record]], None]
) -> int:
    consumer = PartitionConsumer(connection, sorted({topics.of_kind(event.KIND) for event in events}))
    done = 0
    while done < len(events):
        records = consumer.poll(timeout_seconds=5.0, max_records=POLL_RECORDS)
        if not records:
            raise RuntimeError(f"only {done} of {len(events)} events came back")
        take(records)
        done += len(records)
    consumer.close()
    return done
