"""An updater with wrong clocks: a producer's is ahead, or its own has changed at a restart."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from kafka import KafkaProducer
from updater_shop import Shop, events, items, wait_until

from peft_adapters.lifecycle.checkpoint import learner_state
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.updater.loop import Updater
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.errors import HeadwaterStreamError
from streams.events import Click, Event, Impression, ShownItem
from streams.topics import Topics

MINUTE_MS = 60_000
OPEN = 60
EVENTS = 40


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def impressions(count: int, *, ts: int) -> list[Event]:
    shown = (ShownItem(item_id="i1", position=0), ShownItem(item_id="i2", position=1))
    return [
        Impression(event_id=f"s{n}", ts=ts, user_id=f"u{n}", request_id=f"r{n}", scenario="home", items=shown)
        for n in range(count)
    ]


def send_dated(shop: Shop, event: Event, *, record_ms: int) -> None:
    """Publish an event as a producer does whose clock says `record_ms`."""
    producer = KafkaProducer(**shop.connection.client_options())
    topic, value = shop.topics.of_kind(event.KIND), event.model_dump_json(exclude_none=True).encode()
    producer.send(topic, key=event.key().encode(), value=value, timestamp_ms=record_ms).get(30)
    producer.close()


@contextmanager
def updater(shop: Shop, **settings: Any) -> Iterator[Updater]:
    """One in this process."""
    made = Updater(shop.settings(**settings), UpdaterMetrics(new_registry(), topics=shop.topics), threading.Event())
    try:
        yield made
    finally:
        for part in ("_letters", "_announcer", "_consumer"):
            with suppress(AttributeError, HeadwaterStreamError):
                getattr(made, part).close()


def test_a_click_58_minutes_ahead_closes_nobodys_window(
    kafka_connection: KafkaConnection, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    shop = Shop(kafka_connection, make_topics(kafka_connection), tmp_path)
    shown, clicks = shop.topics.impressions, shop.topics.clicks
    shop.send(*items(4), *impressions(OPEN, ts=now_ms()))
    with shop.process() as process:
        wait_until(lambda: process.counts(shown)["pending"] == OPEN, what="all impressions open")
        ahead_ms = now_ms() + 58 * MINUTE_MS
        send_dated(shop, Click(event_id="fut-1", ts=ahead_ms, user_id="futann", item_id="i1"), record_ms=ahead_ms)
        wait_until(lambda: process.counts(clicks)["learnt"] == 1, what="the click that is ahead learnt")
        shop.send(
            *impressions(OPEN + 1, ts=now_ms())[OPEN:], Click(event_id="c", ts=now_ms(), user_id="u1", item_id="i1")
        )
        wait_until(lambda: process.counts(clicks)["learnt"] == 2, what="another click learnt")
        wait_until(lambda: process.counts(shown)["in"] == OPEN + 1, what="another impression read")
        assert process.counts(shown)["pending"] == OPEN + 1
        assert process.value("headwater_clamped_times_total", topic=clicks) == 1
        assert process.value("headwater_event_watermark_timestamp_seconds") <= time.time()
        assert process.end() == 0


def test_a_repeat_bounds_times_by_the_clock_that_was_journaled(
    embedded_broker: EmbeddedBroker,
    make_topics: Callable[..., Topics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=2), tmp_path)
    too_far = Click(event_id="fut-2", ts=now_ms() + 25 * 60 * MINUTE_MS, user_id="u2", item_id="i1")
    shop.send(too_far, *items(20), *impressions(8, ts=now_ms()), *events(EVENTS - 1))
    ahead_ms = now_ms() + 58 * MINUTE_MS
    send_dated(shop, Click(event_id="fut-1", ts=ahead_ms, user_id="u1", item_id="i1"), record_ms=ahead_ms)

    with updater(shop, max_events=EVENTS, checkpoint_seconds=3_600.0) as killed:
        kept: dict[str, Any] = {}
        monkeypatch.setattr(killed, "_finish", lambda: kept.update(killed._intake.state()))
        killed.run()
    assert kept["clamped"][shop.topics.clicks] == 1
    assert shop.checkpointed()["events_learned"] < EVENTS
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 2 * 3_600 * 10**9)  # neither click is ahead by then
    with updater(shop, max_events=EVENTS) as made:
        made.run()
    assert shop.checkpointed()["intake"] == json.loads(json.dumps(kept))
    tensors, state = learner_state(made.learner)
    expected_tensors, expected_state = learner_state(killed.learner)
    assert state == expected_state
    assert [name for name, value in expected_tensors.items() if not torch.equal(value, tensors[name])] == []
    assert [letter.reason for letter in shop.letters()] == ["from_the_future"]
