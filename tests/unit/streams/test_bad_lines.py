"""An invalid line of an order, a cart or a list is rejected by name; the other lines count."""

import json
from typing import Any

import pytest
from foreign_events import (
    GA4_EVENT,
    GA4_REQUEST,
    GA4_ROW,
    LOG_MS,
    METARANK_INTERACTION,
    METARANK_RANKING,
    PANTS,
    SEGMENT_CLICK,
    SEGMENT_LIST,
    SEGMENT_ORDER,
    TEE,
    TOPICS,
    changed,
    read,
)

from streams.dead_letters import DeadLetter, Reason
from streams.decode import decode
from streams.events import Click, Impression, Purchase, ShownItem
from streams.record import Record
from streams.topics import Dialect

GA4_ORDER: dict[str, Any] = {
    "name": "purchase", "client_id": "3.3", "event_timestamp": 1_764_500_000_000_000,
    "params": {"transaction_id": "T-2", "items": [TEE, PANTS]},
}  # fmt: skip


def of_ga4(**line: Any) -> dict[str, Any]:
    return changed(GA4_ORDER, "params", "items", 1, to=PANTS | line)


def of_segment(**line: Any) -> dict[str, Any]:
    products = SEGMENT_ORDER["properties"]["products"]
    return changed(SEGMENT_ORDER, "properties", "products", 1, to=products[1] | line)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"item_id": "(not set)"}, "items.1.item_id: Field required, got '(not set)'"),
        ({"item_id": None}, "items.1.item_id: Field required, got None"),
        ({"item_id": {"sku": 1}}, "items.1.item_id: Input should be a valid string, got an object"),
        ({"item_id": "x" * 257}, "items.1.item_id: String should have at most 256 characters, got 'xxxx"),
        ({"quantity": -1}, "items.1.quantity: Input should be greater than or equal to 1, got -1"),
        ({"quantity": 0}, "items.1.quantity: Input should be greater than or equal to 1, got 0"),
        ({"quantity": 1.5}, "got 1.5"),
        ({"quantity": 10**30}, "items.1.quantity: "),
        ({"quantity": "two"}, "got 'two'"),
        ({"quantity": [1]}, "items.1.quantity: Input should be a valid integer, got a list"),
        ({"price": -2.5}, "items.1.price: Input should be greater than or equal to 0, got -2.5"),
        ({"price": "-2.5"}, "got -2.5"),
    ],
)
def test_a_bad_line_of_an_order_is_refused_by_name_and_value(line: dict[str, Any], text: str) -> None:
    tee, letter = read("ga4", of_ga4(**line))
    assert isinstance(tee, Purchase)
    assert (tee.item_id, tee.order_id) == ("SKU_12345", "T-2")
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.INVALID_SCHEMA
    assert text in letter.error
    assert (letter.line, letter.record_key()) == ("items.1", "of.ga4/0/5/items.1")


@pytest.mark.parametrize(
    "price", ["12,50", "12,99 €", "$18.99", "1.234,56", "NaN", "free", True, [2], {"amount": 2}, float("nan"), 10**400]
)
@pytest.mark.parametrize("order", [of_ga4, of_segment])
def test_a_price_that_is_not_understood_is_null(order: Any, price: object) -> None:
    dialect: Dialect = "ga4" if order is of_ga4 else "segment"
    first, second = read(dialect, order(price=price))
    assert isinstance(first, Purchase)
    assert isinstance(second, Purchase)
    assert first.price is not None
    assert second.price is None


def test_a_click_whose_price_is_not_understood_counts() -> None:
    (click,) = read("segment", changed(SEGMENT_CLICK, "properties", "price", to="$18.99"))
    assert isinstance(click, Click)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("mug", "properties.products.0: must be an object, got 'mug'"),
        (None, "properties.products.0: must be an object, got None"),
        ({"quantity": 2}, "properties.products.0.item_id: Field required, got None"),
    ],
)
def test_a_line_that_is_no_product_is_refused_alone(line: object, text: str) -> None:
    letter, uno = read("segment", changed(SEGMENT_ORDER, "properties", "products", 0, to=line))
    assert isinstance(uno, Purchase)
    assert uno.event_id.endswith("/1")  # as if the other line were good
    assert isinstance(letter, DeadLetter)
    assert text in letter.error


@pytest.mark.parametrize(
    ("dialect", "said", "line"),
    [
        ("ga4", changed(GA4_ROW, "items", 0, "item_id", to="(not set)"), "items.0"),
        ("ga4", changed(GA4_ROW, "items", 0, to=[]), "items.0"),
        ("segment", changed(SEGMENT_LIST, "properties", "products", 0, "product_id", to=True), "properties.products.0"),
        ("metarank", changed(METARANK_RANKING, "items", 0, "id", to=...), "items.0"),
    ],
)
def test_a_bad_item_of_a_list_leaves_the_places_of_the_others(
    dialect: Dialect, said: dict[str, Any], line: str
) -> None:
    shown, letter = read(dialect, said)
    assert isinstance(shown, Impression)
    assert [item["position"] for item in shown.items] == list(range(1, len(shown.items) + 1))
    assert isinstance(letter, DeadLetter)
    assert letter.line == line


def test_a_record_of_which_all_lines_are_bad_is_one_dead_letter() -> None:
    said = changed(of_ga4(quantity=-1), "params", "items", 0, "item_id", to="")
    letter = read("ga4", said)
    assert isinstance(letter, DeadLetter)
    assert letter.line is None
    assert "items.0.item_id: Field required, got ''" in letter.error
    assert "items.1.quantity: Input should be greater than or equal to 1, got -1" in letter.error
    assert json.loads(letter.original() or b"") == said


def test_what_is_wrong_with_the_order_itself_is_said_once() -> None:
    letter = read("ga4", changed(GA4_ORDER, "client_id", to=...))
    assert isinstance(letter, DeadLetter)
    assert letter.error == "user_id: Field required"


def test_a_bad_event_of_a_request_does_not_take_the_others_with_it() -> None:
    bad = {"name": "purchase", "params": {"items": []}}
    events = [bad, "purchase", GA4_REQUEST["events"][1], {"name": "view_item"}]
    found = read("ga4", GA4_REQUEST | {"events": events})
    assert isinstance(found, list)
    letters = [one for one in found if isinstance(one, DeadLetter)]
    assert [letter.line for letter in letters] == ["events.0", "events.1", "events.3"]
    assert "events.0: `items` of purchase must have at least one item, got none" in letters[0].error
    assert [one.item_id for one in found if isinstance(one, Purchase)] == ["SKU_12345", "SKU_12346"]


def test_a_bad_list_of_a_request_is_a_line_of_it() -> None:
    bad = {"name": "view_item_list", "params": {"request_id": "r" * 257, "items": [TEE]}}
    found = read("ga4", GA4_REQUEST | {"events": [bad, GA4_REQUEST["events"][1], bad]})
    assert isinstance(found, list)
    letters = [one for one in found if isinstance(one, DeadLetter)]
    assert [letter.line for letter in letters] == ["events.0", "events.2"]
    assert letters[0].error.startswith("events.0: request_id: String should have at most 256 characters")


def test_the_letter_of_a_line_holds_what_it_takes_to_mend_it() -> None:
    _, letter = read("ga4", of_ga4(quantity=-1))
    assert isinstance(letter, DeadLetter)
    payload = letter.original() or b""
    assert letter.payload_bytes == len(payload)
    content = json.loads(payload)
    assert content["type"] == "purchase"
    mended = Purchase.model_validate(content | {"quantity": 1, "event_id": "e"})
    _, good = read("ga4", GA4_ORDER)
    assert isinstance(good, Purchase)
    assert mended == good.model_copy(update={"event_id": "e", "quantity": 1})


def test_many_bad_lines_do_not_multiply_their_record() -> None:
    items = [TEE, *[{"quantity": -1}] * 2_000]
    said = changed(GA4_ORDER, "params", "items", to=items) | {"padding": "x" * 500_000}
    found = read("ga4", said)
    assert isinstance(found, list)
    letters = [one for one in found if isinstance(one, DeadLetter)]
    assert len(letters) == 2_000
    assert sum(len(letter.payload or "") for letter in letters) < 1_000_000


@pytest.mark.parametrize("value", ["", "(not set)", "undefined", "null", "N/A", None, [], {"id": 1}])
@pytest.mark.parametrize("dialect", ["ga4", "segment", "metarank"])
def test_what_identifies_no_order_is_no_order_id(dialect: Dialect, value: object) -> None:
    said = {
        "ga4": changed(GA4_ORDER, "params", "transaction_id", to=value),
        "segment": changed(SEGMENT_ORDER, "properties", "order_id", to=value),
        "metarank": METARANK_INTERACTION | {"fields": [{"name": "order_id", "value": value}]},
    }[dialect]
    first = read(dialect, said)[0]  # type: ignore[index]
    assert isinstance(first, Purchase)
    assert first.order_id is None


@pytest.mark.parametrize(
    ("dialect", "said"),
    [
        ("ga4", GA4_ORDER),
        ("ga4", changed(GA4_ORDER, "params", "transaction_id", to=...) | {"ecommerce": {"transaction_id": "T-2"}}),
        ("segment", changed(SEGMENT_ORDER, "properties", "order_id", to="T-2")),
        ("metarank", METARANK_INTERACTION | {"fields": [{"name": "transaction_id", "value": "T-2"}]}),
        ("metarank", METARANK_INTERACTION | {"fields": [{"name": "order_id", "value": " T-2"}]}),
    ],
)
def test_each_dialect_names_its_order(dialect: Dialect, said: dict[str, Any]) -> None:
    found = read(dialect, said)
    assert isinstance(found, list)
    assert {one.order_id for one in found if isinstance(one, Purchase)} == {"T-2"}


@pytest.mark.parametrize("value", [17, 17.0, "17"])
def test_a_number_is_the_same_order_and_item_however_it_is_written(value: object) -> None:
    said = changed(GA4_ORDER, "params", "items", to=[TEE | {"item_id": value}])
    (purchase,) = read("ga4", changed(said, "params", "transaction_id", to=value))
    assert isinstance(purchase, Purchase)
    assert (purchase.order_id, purchase.item_id) == ("17", "17")


def test_an_order_line_is_identified_unambiguously() -> None:
    common: dict[str, Any] = {"event_id": "e", "ts": 1, "user_id": "u"}
    lines = {
        Purchase(**common, order_id=order, item_id=item).order_line()
        for order, item in [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("1", "a/b")]
    }
    assert len(lines) == 4
    assert Purchase(**common, item_id="b").order_line() is None
    assert Click(**common, item_id="b").order_line() is None


@pytest.mark.parametrize("value", [-1, 0, 1.5, "two"])
def test_an_event_of_our_own_is_refused_with_the_value(value: object) -> None:
    said = {"event_id": "s-12", "ts": 1_764_500_000_000, "user_id": "any", "item_id": "22423", "quantity": value}
    letter = decode(Record(TOPICS.purchases, 0, 5, b"any", json.dumps(said).encode(), LOG_MS), TOPICS)
    assert isinstance(letter, DeadLetter)
    assert letter.error.startswith("quantity: ")
    assert letter.error.endswith(f", got {value!r}")


def test_the_same_bytes_without_a_time_are_another_event_at_another_place() -> None:
    untimed = {
        "ga4": {"client_id": "1.2", "events": [{"name": "view_item", "params": {"items": [TEE]}}]},
        "segment": changed(changed(changed(SEGMENT_CLICK, "messageId", to=...), "timestamp", to=...),
                           "originalTimestamp", to=...),
    }  # fmt: skip
    timed = {
        "ga4": GA4_EVENT,
        "segment": changed(SEGMENT_CLICK, "messageId", to=...),
        "metarank": changed(METARANK_INTERACTION, "id", to=...),
    }
    for dialect, said in untimed.items():
        assert len(_ids(dialect, said)) == 3
    for dialect, said in timed.items():
        assert len(_ids(dialect, said)) == 1


def _ids(dialect: Any, said: dict[str, Any]) -> set[str]:
    """Return the ids of an event at one place, twice, and at two other places."""
    ids = set()
    for partition, offset in [(0, 5), (0, 5), (0, 6), (1, 5)]:
        value = json.dumps(said).encode()
        (event,) = decode(Record(f"of.{dialect}", partition, offset, None, value, LOG_MS), TOPICS)
        assert isinstance(event, Click | Purchase)
        ids.add(event.event_id)
    return ids


def test_shown_items_of_one_list_keep_what_they_said_of_their_places() -> None:
    said = changed(GA4_ROW, "items", to=[*GA4_ROW["items"], {"item_id": ""}])
    shown, _ = read("ga4", said)
    assert isinstance(shown, Impression)
    assert shown.items == (ShownItem(item_id="9195912", position=4), ShownItem(item_id="9195913", position=1))
