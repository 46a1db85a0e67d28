import json

import pytest
from foreign_events import (
    GA4_EVENT,
    GA4_REQUEST,
    GA4_ROW,
    LOG_MS,
    PANTS,
    TEE,
    TOPICS,
    changed,
    read,
    record,
)

from streams.dead_letters import DeadLetter, Reason
from streams.decode import decode
from streams.events import Click, Impression, Purchase, ShownItem


def test_a_row_of_the_export_is_what_was_shown() -> None:
    (shown,) = read("ga4", GA4_ROW)
    assert isinstance(shown, Impression)
    assert len(shown.event_id) == 32
    assert shown == Impression(
        event_id=shown.event_id,
        ts=1_612_069_510_766,
        user_id="1026454.4271112504",
        session_id="661084800",
        request_id=shown.event_id,
        scenario="home",
        query="tee",
        items=(ShownItem(item_id="9195912", position=4), ShownItem(item_id="9195913", position=1)),
    )


def test_the_purchase_in_a_request_is_one_of_each_item_and_its_page_view_is_nothing() -> None:
    tee, pants = read("ga4", GA4_REQUEST)
    assert isinstance(tee, Purchase)
    assert isinstance(pants, Purchase)
    assert (tee.item_id, tee.quantity, tee.price) == ("SKU_12345", 3, 10.01)
    assert (pants.item_id, pants.quantity, pants.price) == ("SKU_12346", 2, 21.01)
    assert (tee.user_id, tee.session_id, tee.ts) == ("u-7", "123", 1_713_355_200_123)
    request = tee.event_id.removesuffix("/1/0")
    assert len(request) == 32
    assert pants.event_id == f"{request}/1/1"


@pytest.mark.parametrize("name", ["select_item", "view_item", "add_to_cart"])
def test_opening_an_item_or_putting_it_into_the_cart_is_a_click(name: str) -> None:
    (click,) = read("ga4", GA4_EVENT | {"name": name})
    assert isinstance(click, Click)
    assert (click.user_id, click.item_id, click.position) == ("123456.7654321", "SKU_12346", 1)
    assert click.request_id is None
    assert len(click.event_id) == 32


def test_several_items_put_into_the_cart_at_once_are_several_clicks() -> None:
    clicks = read("ga4", changed(GA4_EVENT, "params", "items", to=[TEE, PANTS]) | {"name": "add_to_cart"})
    assert [click.event_id[-2:] for click in clicks if isinstance(click, Click)] == ["/0", "/1"]


def test_the_same_bytes_have_the_same_id_and_others_another() -> None:
    once, again = read("ga4", GA4_ROW), read("ga4", GA4_ROW)
    assert once == again
    other = read("ga4", changed(GA4_ROW, "items", 0, "quantity", to=2))
    assert isinstance(once, list)
    assert isinstance(other, list)
    assert [type(event) for event in once + other] == [Impression, Impression]
    assert once != other


def test_ids_that_a_producer_adds_are_used() -> None:
    (shown,) = read("ga4", changed(GA4_EVENT, "name", to="view_item_list") | {"params": {
        "event_id": "e-1", "request_id": "r-1", "items": [TEE]}})  # fmt: skip
    assert isinstance(shown, Impression)
    assert (shown.event_id, shown.request_id) == ("e-1", "r-1")


@pytest.mark.parametrize(
    ("ids", "user_id"),
    [
        ({"user_id": "u", "user_pseudo_id": "p", "client_id": "c"}, "u"),
        ({"user_id": "", "user_pseudo_id": "p"}, "p"),
        ({"user_id": None, "client_id": 7.5}, "7.5"),
        ({"app_instance_id": "a"}, "a"),
        ({"user_pseudo_id": "(not set)", "client_id": None, "app_instance_id": "a"}, "a"),
    ],
)
def test_a_user_is_who_signed_in_else_the_device(ids: dict[str, object], user_id: str) -> None:
    (click,) = read("ga4", changed(GA4_EVENT, "client_id", to=...) | ids)
    assert isinstance(click, Click)
    assert click.user_id == user_id


def test_a_name_without_a_value_leaves_the_next_one_its_turn() -> None:
    said = {**GA4_EVENT, "event_name": None, "event_timestamp": "(not set)"}
    said["params"] = GA4_EVENT["params"] | {"ga_session_id": None, "session_id": "s-1"}
    (click,) = read("ga4", said)
    assert isinstance(click, Click)
    assert (click.ts, click.session_id) == (1_713_355_200_123, "s-1")


def test_events_of_one_request_may_have_times_of_their_own() -> None:
    said = changed(GA4_REQUEST, "events", 1, "timestamp_micros", to=1_713_355_201_000_000)
    assert [event.ts for event in read("ga4", said) if isinstance(event, Purchase)] == [1_713_355_201_000] * 2


def test_an_event_without_a_time_has_the_one_of_its_record() -> None:
    (click,) = read("ga4", changed(GA4_EVENT, "timestamp_micros", to=...))
    assert isinstance(click, Click)
    assert click.ts == LOG_MS


@pytest.mark.parametrize("index", ["Slide 3", -1, 1.5, None, True, "9" * 40])
def test_what_is_no_place_leaves_the_one_in_the_list(index: object) -> None:
    said = changed(GA4_ROW, "items", 0, "item_list_index", to=index)
    (shown,) = read("ga4", said)
    assert isinstance(shown, Impression)
    assert [item["position"] for item in shown.items] == [0, 1]


@pytest.mark.parametrize("name", ["page_view", "remove_from_cart", "refund", "view_promotion", "session_start"])
def test_other_events_say_nothing(name: str) -> None:
    assert read("ga4", changed(GA4_ROW, "event_name", to=name)) == []
    assert read("ga4", {"name": name}) == []
    assert read("ga4", {"events": [{"name": name}, {}]}) == []


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (changed(GA4_EVENT, "client_id", to=...), "user_id: Field required"),
        (changed(GA4_EVENT, "client_id", to=""), "user_id: Field required"),
        (changed(GA4_ROW, "items", to=[]), "`items` of view_item_list must have at least one item"),
        (changed(GA4_EVENT, "params", to="none"), "params"),
        (changed(GA4_EVENT, "timestamp_micros", to=1_713_355_200_123), "which looks like milliseconds"),
        (changed(GA4_EVENT, "timestamp_micros", to="1713355200"), "got 1713355200, which looks like seconds"),
        (changed(GA4_EVENT, "timestamp_micros", to="1713355200123.0"), "which looks like milliseconds"),
        (changed(GA4_EVENT, "timestamp_micros", to=True), "must be epoch microseconds, got True"),
        (changed(GA4_EVENT, "params", "items", 0, "quantity", to=0) | {"name": "purchase"}, "items.0.quantity: Input"),
        (changed(GA4_EVENT, "params", "items", 0, "item_id", to=""), "items.0.item_id: Field required, got ''"),
        (changed(GA4_REQUEST, "events", to=["purchase"]), "events.0"),
        ({"event": "purchase"}, "an event must have `event_name` or `name`"),
        ([GA4_ROW], "object"),
    ],
)
def test_what_breaks_a_rule_is_a_dead_letter(said: object, text: str) -> None:
    letter = read("ga4", said)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.INVALID_SCHEMA
    assert text in letter.error
    assert json.loads(letter.original() or b"") == said


@pytest.mark.parametrize("value", [None, b"", b"{", b"\xff", b"[" * 5000])
def test_what_is_no_json_is_a_dead_letter(value: bytes | None) -> None:
    letter = decode(record("ga4", value), TOPICS)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.MALFORMED_JSON


def test_neither_key_nor_its_absence_matters() -> None:
    value = json.dumps(GA4_EVENT).encode()
    assert decode(record("ga4", value, None), TOPICS) == decode(record("ga4", value, b"\xff"), TOPICS) != []
