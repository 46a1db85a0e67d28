"""Topics in other dialects, from the broker to a published adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from updater_shop import START_MS, Shop, UpdaterProcess, items, wait_until

from streams.connection import KafkaConnection
from streams.producer import EventProducer
from streams.topics import Topics


def _metarank_ranking(number: int) -> dict[str, Any]:
    shown = [{"id": f"i{(number + place) % 20}", "fields": []} for place in range(5)]
    common = {"timestamp": str(START_MS + 1_000 * number), "user": f"u{number % 7}", "session": "s"}
    return common | {"event": "ranking", "id": f"r{number}", "items": shown}


def _metarank_click(number: int) -> dict[str, Any]:
    common = {"timestamp": str(START_MS + 1_000 * number + 1), "user": f"u{number % 7}", "session": "s"}
    clicked = {"event": "interaction", "type": "click", "id": f"c{number}", "ranking": f"r{number}"}
    return common | clicked | {"item": f"i{(number + 2) % 20}"}


def _segment_order(number: int) -> dict[str, Any]:
    products = [{"product_id": f"i{number}", "quantity": 1, "price": 3.5}, {"sku": f"i{number + 1}"}]
    properties = {"order_id": f"o{number}", "products": products}
    call = {"type": "track", "event": "Order Completed", "messageId": f"m{number}", "userId": f"u{number % 7}"}
    return call | {"timestamp": "2026-02-02T02:40:00.000Z", "properties": properties}


def test_it_learns_from_topics_of_others_alone(
    kafka_connection: KafkaConnection, topics: Topics, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    theirs = make_topics(kafka_connection)  # as if others had made them
    config = tmp_path / "headwater.toml"
    config.write_text(f'[topics.dialects]\n"{theirs.clicks}" = "metarank"\n"{theirs.purchases}" = "segment"\n')
    shop = Shop(kafka_connection, topics, tmp_path)
    shop.send(*items(20))
    with EventProducer(kafka_connection, topics) as producer:
        for number in range(30):
            for said in (_metarank_ranking(number), _metarank_click(number)):
                producer.send_raw(theirs.clicks, f"u{number % 7}".encode(), json.dumps(said).encode())
        for number in range(10):
            producer.send_raw(theirs.purchases, None, json.dumps(_segment_order(number)).encode())
        producer.send_raw(theirs.purchases, None, json.dumps({"type": "identify", "userId": "u1"}).encode())
        producer.send_raw(theirs.purchases, None, b'{"type": "track", "event": "Order Completed"}')

    env = shop.process()._env | {"HEADWATER_CONFIG": str(config)}
    with UpdaterProcess(env, tmp_path / "updater.log", topics) as updater:
        wait_until(lambda: updater.counts(theirs.purchases).get("in") == 22, what="all orders in")
        wait_until(lambda: updater.counts(theirs.purchases)["learnt"] == 20, what="all orders learnt")
        wait_until(lambda: updater.counts(theirs.clicks)["in"] == 60, what="all rankings and clicks in")
        wait_until(lambda: updater.counts(theirs.clicks)["learnt"] >= 30, what="all clicks learnt")
        assert updater.end() == 0
    (letter,) = shop.letters()
    assert (letter.topic, letter.reason) == (theirs.purchases, "invalid_schema")
    assert shop.announced()[-1] == shop.latest()
    counts = shop.checkpointed()["intake"]["outcomes"]
    assert [theirs.purchases, "ignored", 1] in counts
    assert [theirs.purchases, "dead_letter", 1] in counts


def _ga4_order(number: int, *, seconds: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """An order as gtag sends it, so many seconds after the start."""
    micros = 1_000 * (START_MS + 1_000 * seconds)
    order = {"transaction_id": f"T-{number}", "items": lines}
    return {"name": "purchase", "client_id": f"c{number}", "event_timestamp": micros, "params": order}


def test_reloads_untimed_looks_and_bad_lines_are_each_counted_for_what_they_are(
    kafka_connection: KafkaConnection, topics: Topics, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    theirs = make_topics(kafka_connection)
    config = tmp_path / "headwater.toml"
    config.write_text(f'[topics.dialects]\n"{theirs.clicks}" = "ga4"\n"{theirs.purchases}" = "ga4"\n')
    shop = Shop(kafka_connection, topics, tmp_path)
    shop.send(*items(20))
    look = {"client_id": "111.222", "events": [{"name": "view_item", "params": {"items": [{"item_id": "i1"}]}}]}
    lines: list[dict[str, Any]] = [
        {"item_id": "i1", "price": "12,50"},
        {"item_id": "(not set)"},
        {"item_id": "i2"},
        {"item_id": "i3", "quantity": -1},
    ]
    with EventProducer(kafka_connection, topics) as producer:
        for _ in range(3):
            producer.send_raw(theirs.clicks, b"111.222", json.dumps(look).encode())
        for number in range(10):  # each sent again by a reload, a minute later
            for seconds in (number, number + 60):
                order = _ga4_order(number, seconds=seconds, lines=lines)
                producer.send_raw(theirs.purchases, order["client_id"].encode(), json.dumps(order).encode())

    env = shop.process()._env | {"HEADWATER_CONFIG": str(config)}
    with UpdaterProcess(env, tmp_path / "updater.log", topics) as updater:
        wait_until(lambda: updater.counts(theirs.purchases).get("in") == 80, what="all lines in")
        wait_until(lambda: updater.counts(theirs.purchases)["learnt"] == 20, what="all orders learnt")
        wait_until(lambda: updater.counts(theirs.clicks).get("learnt") == 3, what="all looks learnt")
        counts = updater.counts(theirs.purchases)
        assert (counts["duplicate"], counts["dead_letter"]) == (20, 40)
        assert updater.end() == 0
    letters = shop.letters()
    assert len({letter.record_key() for letter in letters}) == len(letters) == 40
    assert {letter.line for letter in letters} == {"items.1", "items.3"}
    assert {letter.error for letter in letters if letter.line == "items.1"} == {
        "items.1.item_id: Field required, got '(not set)'"
    }
