from typing import Any

import pytest
from foreign_events import (
    METARANK_INTERACTION,
    METARANK_ITEM,
    METARANK_RANKING,
    METARANK_USER,
    changed,
    read,
)

from streams.dead_letters import DeadLetter, Reason
from streams.events import Click, Impression, Item, Purchase, ShownItem

TS = 1_599_391_467_000
RANKING = "81f46c34-a4bb-469c-8708-f8127cd67d27"
COMMON: dict[str, Any] = {"ts": TS, "user_id": "user1", "session_id": "session1", "request_id": RANKING}


def test_a_ranking_is_what_was_shown_in_its_order() -> None:
    items = tuple(ShownItem(item_id=name, position=place) for place, name in enumerate(("item3", "item1", "item2")))
    expected = Impression(**COMMON, event_id=RANKING, scenario="home", query="cat", items=items)
    assert read("metarank", METARANK_RANKING) == [expected]


def test_a_purchase_names_its_ranking() -> None:
    expected = Purchase(**COMMON, event_id=METARANK_INTERACTION["id"], item_id="item1", quantity=2)
    assert read("metarank", METARANK_INTERACTION) == [expected]


@pytest.mark.parametrize("kind", ["click", "view", "like"])
def test_a_click_may_be_outside_of_any_ranking(kind: str) -> None:
    said = changed(METARANK_INTERACTION, "ranking", to=None) | {"type": kind}
    expected = Click(**COMMON | {"request_id": None}, event_id=METARANK_INTERACTION["id"], item_id="item1")
    assert read("metarank", said) == [expected]


@pytest.mark.parametrize("name", ["item", "metadata"])
def test_an_item_is_one(name: str) -> None:
    expected = Item(event_id=METARANK_ITEM["id"], ts=TS, item_id="item1", kind="product", title="You favourite cat")
    assert read("metarank", METARANK_ITEM | {"event": name}) == [expected]


def test_fields_of_an_item_that_we_know_are_taken() -> None:
    fields = [
        ("title", "Heat"),
        ("category", ["crime", "thriller"]),
        ("price", 9.5),
        ("kind", "article"),
        ("brand", "X"),
    ]
    said = METARANK_ITEM | {"fields": [{"name": name, "value": value} for name, value in fields]}
    (item,) = read("metarank", said)
    assert isinstance(item, Item)
    assert (item.title, item.category, item.price, item.brand) == ("Heat", "crime, thriller", 9.5, "X")
    assert item.kind == "article"


@pytest.mark.parametrize(
    ("value", "text"), [(1984, "1984"), (["cat", "dog"], "cat, dog"), ([1, 2], "1, 2"), ("a", "a")]
)
def test_a_field_of_whatever_type_is_text(value: object, text: str) -> None:
    fields = [{"name": "title", "value": value}, {"name": "query", "value": value}]
    (item,), (shown,) = (
        read("metarank", METARANK_ITEM | {"fields": fields}),
        read("metarank", METARANK_RANKING | {"fields": fields}),
    )
    assert isinstance(item, Item)
    assert isinstance(shown, Impression)
    assert item.title == shown.query == text


@pytest.mark.parametrize(
    "fields",
    [
        [{"name": "title", "value": "Heat"}, {"name": "price", "value": "12,50"}],
        [{"name": "price", "value": -1}, {"name": "title", "value": "Heat"}],
        [{"name": "title", "value": None}, {"name": "title", "value": "Heat"}, {"name": "kind", "value": "dress"}],
        [{"name": "title", "value": ["Heat", None, {}]}, {"name": "status", "value": ["sold", "out"]}],
        [{"name": "title", "value": "Heat"}, {"name": "brand", "value": {"en": "X"}}],
        [{"name": "category", "value": True}, {"name": "title", "value": "Heat"}],
        [{"name": "title", "value": "Heat"}, {"name": 7, "value": "x"}, "stray", None, {"value": 1}, ["title"]],
        [{"name": "title", "value": "Heat"}, {"name": "vectors", "value": [1, 2]}, {"name": "ts", "value": "x"}],
    ],
)
def test_a_foreign_field_of_an_item_refuses_nothing(fields: list[object]) -> None:
    expected = Item(event_id=METARANK_ITEM["id"], ts=TS, item_id="item1", kind="product", title="Heat")
    assert read("metarank", METARANK_ITEM | {"fields": fields}) == [expected]


@pytest.mark.parametrize("fields", [["query"], {"query": "cat"}, [{"name": "query", "value": {"text": "cat"}}], "x"])
def test_a_foreign_field_of_a_ranking_refuses_nothing(fields: object) -> None:
    (shown,) = read("metarank", METARANK_RANKING | {"fields": fields})
    assert isinstance(shown, Impression)
    assert shown.query is None


@pytest.mark.parametrize("said", [METARANK_USER, METARANK_INTERACTION | {"type": "dislike"}])
def test_users_and_other_interactions_say_nothing(said: dict[str, Any]) -> None:
    assert read("metarank", said) == []


@pytest.mark.parametrize("timestamp", ["1599391467000", 1_599_391_467_000, "2020-09-06T11:24:27Z"])
def test_each_form_of_time_is_read(timestamp: object) -> None:
    assert read("metarank", METARANK_RANKING | {"timestamp": timestamp}) == read("metarank", METARANK_RANKING) != []


def test_a_session_stands_in_for_a_user() -> None:
    (shown,) = read("metarank", changed(METARANK_RANKING, "user", to=...))
    assert isinstance(shown, Impression)
    assert shown.user_id == shown.session_id == "session1"


def test_an_event_without_an_id_has_one_of_its_bytes() -> None:
    said = changed(METARANK_RANKING, "id", to=...)
    once = read("metarank", said)
    assert once == read("metarank", said)
    assert isinstance(once, list)
    assert isinstance(once[0], Impression)
    assert len(once[0].event_id) == 32
    assert once[0].request_id == once[0].event_id


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (METARANK_RANKING | {"event": "clickstream"}, "event"),
        (changed(METARANK_RANKING, "event", to=...), "event: Field required"),
        (METARANK_RANKING | {"items": []}, "items"),
        (METARANK_RANKING | {"items": [{"id": ""}, "item2"]}, "items.0.item_id: Field required, got ''; items.1: must"),
        (METARANK_RANKING | {"timestamp": "soon"}, "timestamp"),
        (METARANK_RANKING | {"timestamp": "1599391467"}, "milliseconds, got 1599391467, which looks like seconds"),
        (METARANK_ITEM | {"timestamp": 1_599_391_467}, "which looks like seconds"),
        (METARANK_ITEM | {"timestamp": 1_599_391_467_000_000}, "which looks like microseconds"),
        (changed(METARANK_RANKING, "timestamp", to=...), "timestamp: Field required"),
        (METARANK_RANKING | {"user": None, "session": ""}, "user_id: Field required"),
        (changed(METARANK_INTERACTION, "item", to=...), "item_id: Field required"),
        (METARANK_ITEM | {"fields": [{"name": "price", "value": 25.0}]}, "title: must be a text each time"),
        (
            METARANK_ITEM | {"fields": [{"name": "title", "value": None}]},
            "replaces the previous version as a whole, got None",
        ),
        (METARANK_ITEM | {"fields": [{"name": "title", "value": {"en": "Heat"}}]}, "got an object"),
    ],
)
def test_what_breaks_a_rule_is_a_dead_letter(said: dict[str, Any], text: str) -> None:
    letter = read("metarank", said)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.INVALID_SCHEMA
    assert text in letter.error
