from typing import Any

import pytest
from foreign_events import LOG_MS, SEGMENT_CLICK, SEGMENT_LIST, SEGMENT_ORDER, changed, read

from streams.dead_letters import DeadLetter, Reason
from streams.events import Click, Impression, Purchase, ShownItem

ID = "022bb90c-bbac-11e4-8dfc-aa07a5b093db"
TS = 1_449_720_511_905
COMMON: dict[str, Any] = {"event_id": ID, "ts": TS, "user_id": "97980cfea0067", "scenario": "home"}


@pytest.mark.parametrize("name", ["Product List Viewed", "Product List Filtered"])
def test_a_list_is_what_was_shown_with_places_from_0(name: str) -> None:
    items = (
        ShownItem(item_id="507f1f77bcf86cd799439011", position=0),
        ShownItem(item_id="505bd76785ebb509fc183733", position=1),
    )
    assert read("segment", SEGMENT_LIST | {"event": name}) == [Impression(**COMMON, request_id=ID, items=items)]


@pytest.mark.parametrize("name", ["Product Clicked", "Product Viewed", "Product Added"])
def test_opening_a_product_or_putting_it_into_the_cart_is_a_click(name: str) -> None:
    expected = Click(**COMMON, item_id="507f1f77bcf86cd799439011", position=2)
    assert read("segment", SEGMENT_CLICK | {"event": name}) == [expected]


def test_an_order_is_a_purchase_of_each_product() -> None:
    order = COMMON | {"order_id": "50314b8e9bcf000000000000"}
    assert read("segment", SEGMENT_ORDER) == [
        Purchase(**order | {"event_id": f"{ID}/0"}, item_id="507f1f77bcf86cd799439011", quantity=1, price=19),
        Purchase(**order | {"event_id": f"{ID}/1"}, item_id="505bd76785ebb509fc183733", quantity=2, price=3),
    ]


def test_a_single_product_keeps_the_id_of_its_order() -> None:
    (purchase,) = read("segment", changed(SEGMENT_ORDER, "properties", "products", 1, to=...))
    assert isinstance(purchase, Purchase)
    assert purchase.event_id == ID


def test_as_rudderstack_sends_it() -> None:
    rudder = changed(SEGMENT_CLICK, "context", to={"sessionId": 1_661_241_600, "sessionStart": True})
    (click,) = read("segment", rudder | {"userId": "", "channel": "web", "rudderId": "x"})
    assert isinstance(click, Click)
    assert (click.user_id, click.session_id) == ("507f191e810c19729de860ea", "1661241600")


@pytest.mark.parametrize("query", ["1984", 1984])
def test_a_query_may_be_a_number(query: object) -> None:
    (shown,) = read("segment", changed(SEGMENT_LIST, "properties", "query", to=query))
    assert isinstance(shown, Impression)
    assert shown.query == "1984"


def test_a_list_counted_from_0_is_taken_so() -> None:
    said = SEGMENT_LIST
    for number in range(2):
        said = changed(said, "properties", "products", number, "position", to=number)
    assert read("segment", said) == read("segment", SEGMENT_LIST)


def test_products_without_places_stand_where_they_stand() -> None:
    said = SEGMENT_LIST
    for number in range(2):
        said = changed(said, "properties", "products", number, "position", to=...)
    assert read("segment", said) == read("segment", SEGMENT_LIST)


def test_sku_stands_in_for_a_product_id() -> None:
    (click,) = read("segment", changed(SEGMENT_CLICK, "properties", "product_id", to=None))
    assert isinstance(click, Click)
    assert click.item_id == "45790-32"


def test_a_number_is_an_id() -> None:
    (click,) = read("segment", changed(SEGMENT_CLICK, "properties", "product_id", to=507) | {"userId": 97})
    assert isinstance(click, Click)
    assert (click.item_id, click.user_id) == ("507", "97")


def test_the_time_is_the_corrected_one_then_the_clients_then_that_of_the_record() -> None:
    uncorrected = changed(SEGMENT_CLICK, "timestamp", to=...)
    timeless = changed(uncorrected, "originalTimestamp", to=None)
    (first,), (second,), (third,) = (read("segment", said) for said in (SEGMENT_CLICK, uncorrected, timeless))
    assert isinstance(first, Click)
    assert isinstance(second, Click)
    assert isinstance(third, Click)
    assert (first.ts, second.ts, third.ts) == (TS, TS - 328, LOG_MS)


def test_a_call_without_a_message_id_has_one_of_its_bytes() -> None:
    said = changed(SEGMENT_CLICK, "messageId", to=...)
    once = read("segment", said)
    assert once == read("segment", said) != read("segment", changed(said, "properties", "position", to=4))
    assert isinstance(once, list)
    assert isinstance(once[0], Click)
    assert len(once[0].event_id) == 32


@pytest.mark.parametrize(
    "said",
    [
        {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}},
        {"type": "page", "name": "Home"},
        {"type": "track", "event": "Product Removed", "properties": {}},
        {"type": "track", "event": "Order Refunded"},
        {"type": "track", "event": 7},
        {"type": "track"},
    ],
)
def test_other_calls_say_nothing(said: dict[str, Any]) -> None:
    assert read("segment", said) == []


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (changed(SEGMENT_CLICK, "userId", to=None) | {"anonymousId": ""}, "user_id: Field required"),
        (changed(SEGMENT_CLICK, "properties", to=...), "properties: Field required"),
        (changed(SEGMENT_CLICK, "properties", to={}), "item_id: Field required"),
        (changed(SEGMENT_CLICK, "timestamp", to="yesterday"), "timestamp"),
        (changed(SEGMENT_CLICK, "timestamp", to=1_449_720_511), "got 1449720511, which looks like seconds"),
        (changed(SEGMENT_LIST, "properties", "products", to=[]), "properties.products"),
        (changed(SEGMENT_LIST, "properties", "products", to=None), "properties.products"),
        (changed(SEGMENT_ORDER, "properties", "products", to=...), "products: must be a list of at least one"),
        (changed(SEGMENT_ORDER, "properties", "products", to="mug"), "at least one product, got 'mug'"),
        (changed(SEGMENT_CLICK, "properties", "product_id", to={"en": 7}), "properties.item_id"),
        (changed(SEGMENT_CLICK, "messageId", to="m" * 257), "event_id"),
        (changed(SEGMENT_CLICK, "type", to=...), "type: Field required"),
        ("Product Clicked", "object"),
    ],
)
def test_what_breaks_a_rule_is_a_dead_letter(said: object, text: str) -> None:
    letter = read("segment", said)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.INVALID_SCHEMA
    assert text in letter.error
