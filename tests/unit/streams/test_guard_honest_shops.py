"""Honest shops of many shapes: however popular an item is, under 1 % of its clicks and purchases is left out."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from streams.examples import Example
from streams.guard import Guard
from streams.guard_settings import GuardSettings

HOUR_MS = 3_600_000
BATCH = 256


@dataclass(frozen=True)
class Shop:
    """A shop that sells by chance.

    Attributes:
        items: how many it has.
        shoppers: how many come again and again.
        bestsellers: how many items are far more popular than the others.
        share: of the clicks, of each bestseller.
        hours: how long it is watched.
        hour_clicks: clicks in an hour.
        guests: share of clicks of guests, each under an id of its own.
        shown: whether clicks join impressions.
        sale_hour: the hour from which on a fifth of the clicks is for one new item; instead of bestsellers.
    """

    items: int = 300
    shoppers: int = 200
    bestsellers: int = 3
    share: float = 0.1
    hours: int = 5
    hour_clicks: int = 1_200
    guests: float = 0.0
    shown: bool = False
    sale_hour: int | None = None


SHOPS = {
    "of_the_report": Shop(),
    "quiet": Shop(hour_clicks=200, hours=20),
    "busy": Shop(hour_clicks=5_000, hours=2),
    "of_50_items": Shop(items=50),
    "of_2000_items": Shop(items=2_000),
    "of_20_shoppers": Shop(shoppers=20),
    "of_20_shoppers_and_50_items": Shop(shoppers=20, items=50),
    "of_5000_shoppers": Shop(shoppers=5_000),
    "of_5000_shoppers_and_2000_items": Shop(shoppers=5_000, items=2_000),
    "one_item_of_30_percent": Shop(bestsellers=1, share=0.3),
    "one_item_of_30_percent_and_20_shoppers": Shop(bestsellers=1, share=0.3, shoppers=20),
    "one_item_of_30_percent_and_5000_shoppers": Shop(bestsellers=1, share=0.3, shoppers=5_000),
    "flash_sale": Shop(sale_hour=4, hours=7),
    "flash_sale_in_a_large_shop": Shop(sale_hour=4, hours=7, shoppers=3_000, items=1_000),
    "guests_who_were_shown_it": Shop(guests=1.0, shown=True),
    "guests_who_were_shown_an_item_of_30_percent": Shop(guests=1.0, shown=True, bestsellers=1, share=0.3),
    "guests_among_shoppers": Shop(guests=0.5, shown=True),
}


def events(shop: Shop, seed: int) -> list[Example]:
    chance = random.Random(seed)  # noqa: S311 - no secret
    names = [f"i{number}" for number in range(shop.items)]
    weights = [1 / (number + 5) for number in range(shop.items)]
    found: list[Example] = []
    for number in range(shop.hours * shop.hour_clicks):
        hour = number // shop.hour_clicks
        user = f"guest-{number}" if chance.random() < shop.guests else f"u{chance.randrange(shop.shoppers)}"
        item, draw = chance.choices(names, weights)[0], chance.random()
        if shop.sale_hour is None and draw < shop.bestsellers * shop.share:
            item = f"best-{int(draw / shop.share)}"
        elif shop.sale_hour is not None and hour >= shop.sale_hour and draw < 0.2:
            item = "sale"
        ts = number * HOUR_MS // shop.hour_clicks
        kinds = ["click", "purchase"] if chance.random() < 0.2 else ["click"]
        found += [
            Example(f"{kind}-{number}", user, None, item, ts, kind, "home", None, ts + 5, shown=shop.shown)  # type: ignore[arg-type]
            for kind in kinds
        ]
    return found


def lost(guard: Guard, examples: list[Example]) -> dict[str, float]:
    """Return the shares of clicks and of purchases that do not count."""
    total, left_out = Counter[str](), Counter[str]()
    for start in range(0, len(examples), BATCH):
        for example in guard.weigh(examples[start : start + BATCH]):
            total[example.kind] += 1
            left_out[example.kind] += example.weight == 0
    return {kind: left_out[kind] / total[kind] for kind in total}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHOPS)
def test_an_honest_shop_loses_under_1_percent(name: str, seed: int) -> None:
    guard = Guard(GuardSettings())
    shares = lost(guard, events(SHOPS[name], seed))
    assert max(shares.values()) < 0.01, (shares, guard.downweighted)
    assert guard.in_quarantine == {"user": 0, "item": 0}


@pytest.mark.parametrize("seed", range(3))
def test_spam_in_that_shop_is_left_out_all_the_same(seed: int) -> None:
    honest = events(SHOPS["of_the_report"], seed)
    middle = len(honest) // 2
    spam = [
        Example(f"spam-{n}", f"bot-{n}", None, "i150", honest[middle].ts, "click", "home", None, honest[middle].ts)
        for n in range(300)
    ]
    guard = Guard(GuardSettings())
    mixed = honest[:middle] + spam + honest[middle:]
    counted = [
        one.event_id
        for start in range(0, len(mixed), BATCH)
        for one in guard.weigh(mixed[start : start + BATCH])
        if one.weight
    ]
    assert sum(one.startswith("spam") for one in counted) <= 6
    assert len(counted) > 0.99 * len(honest)
