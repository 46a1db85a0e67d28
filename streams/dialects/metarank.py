"""Metarank's events: ``ranking`` is an impression, ``interaction`` a click or a purchase, ``item`` an item.

Of interactions, whose types each shop names for itself, ``click``, ``view`` and ``like`` are clicks and ``purchase``
is a purchase; other types (a dislike would be one) say nothing to us, nor does ``user``.

A shop adds fields of its own to any of them, under any name and of any type: what is of no use here is left out.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field

from streams.dialects.common import (
    BadLine,
    Common,
    Decoded,
    Foreign,
    Line,
    Source,
    Text,
    Time,
    amount,
    bought,
    clicked,
    lines_of,
    order_id,
    shown,
)
from streams.events import Item, ItemKind
from streams.validation_errors import summarize

CLICKS = frozenset({"click", "view", "like"})
PURCHASE = "purchase"
ITEM_TEXTS = ("title", "description", "category", "brand")
ITEM_CHOICES = {"kind": get_args(ItemKind), "status": get_args(Item.model_fields["status"].annotation)}


class _Event(Foreign):
    id: Text = None
    ts: Time = Field(validation_alias="timestamp")
    fields: Any = None

    def event_id(self, source: Source) -> str:
        return self.id or source.event_id(has_time=True)

    def named(self, *names: str) -> Iterator[Any]:
        """The values of the fields of these names, in their order."""
        for field in self.fields if isinstance(self.fields, list) else ():
            if isinstance(field, dict) and field.get("name") in names:
                yield field.get("value")

    def text(self, name: str) -> str | None:
        """The text of the first field of a name that has one; None where none has."""
        return next((text for value in self.named(name) if (text := _text(value)) is not None), None)


class _Feedback(_Event):
    user: Text = None
    session: Text = None

    def common(self, source: Source, *, request_id: str | None, order_id: str | None = None) -> Common:
        user_id = self.user or self.session
        return Common(self.event_id(source), self.ts, user_id, self.session, request_id, order_id)


class _Ranking(_Feedback):
    items: list[Any] = Field(min_length=1)


class _Interaction(_Feedback):
    type: str
    item: Any = None
    ranking: Text = None


class _Item(_Event):
    item: Text = None


class _Envelope(Foreign):
    event: Literal["item", "metadata", "user", "ranking", "interaction"]  # `metadata`: an older name of `item`


def decode_metarank(source: Source) -> Decoded:
    """Reads one record.

    Args:
        source: One event.

    Raises:
        ValidationError: If it is not as Metarank or our own rules have it.
    """
    kind = _Envelope.model_validate_json(source.payload).event
    if kind == "ranking":
        return _ranking(source)
    if kind == "interaction":
        return _interaction(source)
    return [] if kind == "user" else [_item(source)]


def _ranking(source: Source) -> Decoded:
    ranking = _Ranking.model_validate_json(source.payload)
    common = ranking.common(source, request_id=ranking.id)
    lines = lines_of(ranking.items, lambda item, where: Line(where, item.get("id")), path="items")
    return shown(common, lines, query=ranking.text("query"))


def _interaction(source: Source) -> Decoded:
    interaction = _Interaction.model_validate_json(source.payload)
    if interaction.type in CLICKS:
        return clicked(interaction.common(source, request_id=interaction.ranking), [Line("", interaction.item)])
    if interaction.type != PURCHASE:
        return []
    order = next(filter(None, map(order_id, interaction.named("order_id", "transaction_id"))), None)
    common = interaction.common(source, request_id=interaction.ranking, order_id=order)
    quantity = next(interaction.named("quantity", "count"), None)
    return bought(common, [Line("", interaction.item, quantity=quantity, price=_price(interaction))])


def _item(source: Source) -> Item | BadLine:
    item = _Item.model_validate_json(source.payload)
    fields: dict[str, Any] = {"event_id": item.event_id(source), "ts": item.ts, "item_id": item.item, "kind": "product"}
    fields |= {name: text for name in ITEM_TEXTS if (text := item.text(name)) is not None}
    for name, known in ITEM_CHOICES.items():
        if (value := item.text(name)) in known:
            fields[name] = value
    price = _price(item)
    if price is not None and price >= 0:
        fields["price"] = price
    if "title" not in fields:
        title = summarize(next(item.named("title"), None))
        problem = f"title: must be a text each time, because an item replaces the one before it whole, got {title}"
        return BadLine("", problem, fields)
    return Item.model_validate({name: value for name, value in fields.items() if value is not None})


def _price(event: _Event) -> float | None:
    """The first price that is a number; a list of one is that one."""
    values = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in event.named("price"))
    return next((price for value in values if (price := amount(value)) is not None), None)


def _text(value: Any) -> str | None:
    """Reads a field as one text; None where it is none.

    It may have several values (a film its genres), or be a number (the book 1984).
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text_of_one, value))) or None
    return _text_of_one(value)


def _text_of_one(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
