"""The live catalogue of a scorer."""

from typing import Any

import numpy as np

from services.scorer.filters import FIRST_CAPACITY, Filters
from services.scorer.live_items import LiveItems
from streams.decode import ItemRemoved
from streams.events import Item


def item(item_id: str, title: str = "Mug", **fields: Any) -> Item:
    return Item(event_id=f"e-{item_id}", ts=1, item_id=item_id, kind="product", title=title, **fields)


def offered(items: LiveItems) -> list[bool]:
    return list(items.are_available(np.arange(len(items))))


def test_changes_are_given_once_in_order_of_arrival_with_the_newest_text() -> None:
    items = LiveItems()
    for event in (item("a"), item("b", brand="Acme"), item("c"), item("a", "Cup")):
        items.take_in(event)
    assert items.take_changes(2) == [("a", "Cup"), ("b", "Mug. Acme")]
    assert items.take_changes(2) == [("c", "Mug")]
    assert items.take_changes(2) == []
    items.take_in(item("b", "Jug"))
    assert items.take_changes(2) == [("b", "Jug")]
    assert items.rows == {"a": 0, "b": 1, "c": 2}


def test_an_item_is_given_with_its_vectors_until_it_comes_without() -> None:
    items = LiveItems()
    items.take_in(item("a", vectors={"image": [3.0, 4.0]}))
    (taken,) = items.take_changes(10)
    assert len(taken) == 3
    assert taken[2]["image"].tolist() == np.array([0.6, 0.8], dtype=np.float16).tolist()
    items.take_in(item("a"))
    items.return_changes([taken])
    assert items.take_changes(10) == [("a", "Mug")]


def test_blocked_and_removed_items_are_not_offered_until_they_come_back() -> None:
    items = LiveItems()
    for event in (item("a"), item("b"), item("c", status="blocked")):
        items.take_in(event)
    assert offered(items) == [True, True, False]
    items.take_in(item("a", status="blocked"))
    items.take_in(ItemRemoved("b", 1))
    items.take_in(ItemRemoved("never-seen", 1))
    assert offered(items) == [False, False, False]
    for item_id in ("a", "b", "c"):
        items.take_in(item(item_id))
    assert offered(items) == [True, True, True]
    assert "never-seen" not in items.rows


def test_only_what_takes_an_item_away_counts_as_withdrawn() -> None:
    items = LiveItems()
    for event, withdrawn in (
        (item("a"), 0),
        (item("b", status="blocked"), 1),
        (item("b"), 1),
        (ItemRemoved("never-seen", 1), 1),
        (ItemRemoved("a", 1), 2),
        (item("b", status="blocked"), 3),
    ):
        items.take_in(event)
        assert items.withdrawals == withdrawn


def test_it_grows_and_forgets_nothing() -> None:
    items = LiveItems()
    for number in range(2 * FIRST_CAPACITY + 1):
        items.take_in(item(str(number), status="blocked" if number % 2 else "active"))
    assert offered(items) == [number % 2 == 0 for number in range(2 * FIRST_CAPACITY + 1)]
    assert len(items.take_changes(10**6)) == 2 * FIRST_CAPACITY + 1


def test_changes_given_back_come_first_again_but_never_undo_a_newer_text() -> None:
    items = LiveItems()
    for event in (item("a"), item("b")):
        items.take_in(event)
    taken = items.take_changes(10)
    items.take_in(item("c"))
    items.take_in(item("b", "Jug"))
    items.return_changes(taken)
    assert items.take_changes(10) == [("a", "Mug"), ("b", "Jug"), ("c", "Mug")]


def test_an_older_event_that_arrives_later_does_not_undo_a_newer_one() -> None:
    items = LiveItems()
    for event in (item("c"), item("a", status="blocked"), item("b", in_stock=False)):
        items.take_in(event.model_copy(update={"ts": 9}))
    items.take_in(ItemRemoved("c", 9))
    items.take_changes(10)
    for item_id in "abc":
        items.take_in(item(item_id, "Old").model_copy(update={"ts": 8}))
    assert offered(items) == [False, False, True]
    assert items.rows == {"c": 0, "a": 1, "b": 2}
    assert list(items.matching(np.arange(3), Filters(in_stock=True))) == [True, True, False]
    assert items.take_changes(10) == []
    items.take_in(item("a", "New").model_copy(update={"ts": 9}))
    assert offered(items) == [False, True, True]


def test_a_time_from_before_the_clock_was_set_back_freezes_no_item() -> None:
    items = LiveItems()
    items.take_in(item("a", status="blocked").model_copy(update={"ts": 3_600_000}), latest_ms=3_600_000)
    items.take_in(item("a").model_copy(update={"ts": 60_000}), latest_ms=60_000)
    assert offered(items) == [True]
