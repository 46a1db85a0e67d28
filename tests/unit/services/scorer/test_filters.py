"""What is left out of answers: blocklists, filters, what was bought."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from services.scorer.bought import MAX_BOUGHT_ITEMS, Bought
from services.scorer.filters import FIRST_CAPACITY, Filters, ItemFacts
from services.scorer.live_items import LiveItems
from services.scorer.shopper_state import ShopperState
from services.settings import load_settings
from services.settings.blocklist import Blocklist
from streams.events import Click, Item, Purchase


def item(item_id: str, **fields: Any) -> Item:
    return Item.model_validate(
        {"event_id": f"e-{item_id}", "ts": 1, "item_id": item_id, "kind": "product", "title": "Mug", **fields}
    )


def offered(items: LiveItems) -> set[str]:
    may_be = items.are_available(np.arange(len(items)))
    return {item_id for item_id, row in items.rows.items() if may_be[row]}


def test_what_is_on_the_blocklist_is_not_offered_whatever_the_catalogue_says() -> None:
    items = LiveItems(Blocklist(item_ids=["a"], brands=[" ACME "], categories=["Weapons"]))
    for event in (
        item("a"),
        item("b", brand="Acme"),
        item("c", category="weapons"),
        item("d", brand="Acme's"),
        item("e"),
    ):
        items.take_in(event)
    assert offered(items) == {"d", "e"}
    items.take_in(item("e", brand="acme"))
    items.take_in(item("b", brand="Other"))
    assert offered(items) == {"b", "d"}


def test_the_blocklist_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SCORER__BLOCKLIST__BRANDS", '["Acme"]')
    assert load_settings().scorer.blocklist.brands == {"acme"}


def test_a_blocklist_that_would_block_whatever_has_no_brand_is_refused() -> None:
    with pytest.raises(ValidationError, match="must not be empty"):
        Blocklist(brands=["Acme", "  "])


CATALOGUE = (
    item("mug", category="Kitchen", price=5),
    item("pan", category="kitchen", price=40, in_stock=False),
    item("guide", kind="article", category="Reading"),
    item("poster", kind="ad", price=0),
)


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        ({}, {"mug", "pan", "guide", "poster"}),
        ({"kinds": ["product"]}, {"mug", "pan"}),
        ({"kinds": ["article", "ad"]}, {"guide", "poster"}),
        ({"categories": ["KITCHEN", "no such"]}, {"mug", "pan"}),
        ({"categories": ["no such"]}, set()),
        ({"min_price": 5}, {"mug", "pan"}),
        ({"max_price": 5}, {"mug", "poster"}),
        ({"min_price": 6, "max_price": 5}, set()),
        ({"in_stock": True}, {"mug", "guide", "poster"}),
        ({"kinds": ["product"], "categories": ["kitchen"], "max_price": 50, "in_stock": True}, {"mug"}),
    ],
)
def test_filters_leave_what_they_ask_for(asked: dict[str, Any], fitting: set[str]) -> None:
    facts = ItemFacts()
    for row, event in enumerate(CATALOGUE):
        facts.set(row, event)
    fits = facts.matching(np.arange(4), Filters.model_validate(asked))
    assert {event.item_id for event, fit in zip(CATALOGUE, fits, strict=True) if fit} == fitting


def test_facts_follow_the_newest_event_and_grow() -> None:
    items = LiveItems()
    for number in range(FIRST_CAPACITY + 1):
        items.take_in(item(str(number), price=number))
    items.take_in(item("3", price=5_000))
    dear = Filters(min_price=FIRST_CAPACITY)
    assert np.flatnonzero(items.matching(np.arange(len(items)), dear)).tolist() == [3, FIRST_CAPACITY]


def test_bought_is_bounded_in_items_and_in_shoppers() -> None:
    bought = Bought(max_shoppers=2)
    for number in range(MAX_BOUGHT_ITEMS + 1):
        bought.add("u", str(number))
    bought.add("u", "1")
    assert bought.of("u")[0] == "2", "the oldest was let go, the one bought again is the newest"
    assert bought.of("u")[-1] == "1"
    assert len(bought.of("u")) == MAX_BOUGHT_ITEMS
    bought.add("v", "a")
    bought.add("w", "a")
    assert (bought.of("u"), bought.of("v"), bought.of("w")) == ((), ("a",), ("a",))


def test_purchases_are_remembered_by_pseudonym_until_they_are_to_be_forgotten() -> None:
    shoppers = ShopperState({"a": 0}, max_shoppers=10, pseudonymise=lambda name: f"<{name}>")
    shoppers.take_in(Click(event_id="c", ts=1, user_id="u", item_id="a"), publish_ts_ms=1)
    shoppers.take_in(Purchase(event_id="p", ts=2, user_id="u", item_id="not known yet"), publish_ts_ms=2)
    assert shoppers.bought("<u>") == ("not known yet",)
    assert shoppers.bought("u") == ()
    shoppers.forget("<u>", until_ms=3)
    shoppers.take_in(Purchase(event_id="q", ts=3, user_id="u", item_id="a"), publish_ts_ms=3)
    assert shoppers.bought("<u>") == ()
