"""Metarank's events: ``ranking`` is an impression, ``interaction`` a click or a purchase, ``item`` an item.

Each shop names its types of interactions: ``click``, ``view`` and ``like`` are clicks and ``purchase`` is a purchase;
other types (such as a dislike) are ignored, and so is ``user``.

A shop adds fields of any name and type to any of them: fields that are of no use here are ignored.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field

from streams.dialects.common import (
    Decoded,
    EventFields,
    Foreign,
    InvalidLine,
    ItemLine,
    SourceRecord,
    Text,
    Time,
    clicks_of,
    impression_of,
    parse_lines,
    parse_order_id,
    parse_price,
    purchases_of,
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

    def event_id(self, source: SourceRecord) -> str:
        return self.id or source.event_id(has_time=True)

    def named(self, *names: str) -> Iterator[Any]:
        """Yield the values of the fields with these names, in their order."""
        for field in self.fields if isinstance(self.fields, list) else ():
            if isinstance(field, dict) and field.get("name") in names:
                yield field.get("value")

    def text(self, name: str) -> str | None:
        """Return the text of the first field of this name that has one; None if there is none."""
        return next((text for value in self.named(name) if (text := _text(value)) is not None), None)


class _Feedback(_Event):
    user: Text = None
    session: Text = None

    def common(self, source: SourceRecord, *, request_id: str | None, order_id: str | None = None) -> EventFields:
        user_id = self.user or self.session
        return EventFields(self.event_id(source), self.ts, user_id, self.session, request_id, order_id)


class _Ranking(_Feedback):
    items: list[Any] = Field(min_length=1)


class _Interaction(_Feedback):
    type: str
    item: Any = None
    ranking: Text = None


class _Item(_Event):
    item: Text = None


class _Envelope(Foreign):
    event: Literal["item", "metadata", "user", "ranking", "interaction"]  # `metadata` is the former name of `item`


def decode_metarank(source: SourceRecord) -> Decoded:
    """Decode one record.

    Args:
        source: the record of one event.

    Raises:
        ValidationError: if the event does not conform to Metarank's format or to our own rules.
    """
    kind = _Envelope.model_validate_json(source.payload).event
    if kind == "ranking":
        return _ranking(source)
    if kind == "interaction":
        return _interaction(source)
    return [] if kind == "user" else [_item(source)]


def _ranking(source: SourceRecord) -> Decoded:
    ranking = _Ranking.model_validate_json(source.payload)
    common = ranking.common(source, request_id=ranking.id)
    lines = parse_lines(ranking.items, lambda item, where: ItemLine(where, item.get("id")), path="items")
    return impression_of(common, lines, query=ranking.text("query"))


def _interaction(source: SourceRecord) -> Decoded:
    interaction = _Interaction.model_validate_json(source.payload)
    if interaction.type in CLICKS:
        return clicks_of(interaction.common(source, request_id=interaction.ranking), [ItemLine("", interaction.item)])
    if interaction.type != PURCHASE:
        return []
    order = next(filter(None, map(parse_order_id, interaction.named("order_id", "transaction_id"))), None)
    common = interaction.common(source, request_id=interaction.ranking, order_id=order)
    quantity = next(interaction.named("quantity", "count"), None)
    return purchases_of(common, [ItemLine("", interaction.item, quantity=quantity, price=_price(interaction))])


def _item(source: SourceRecord) -> Item | InvalidLine:
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
        problem = (
            f"title: must be a text each time, because an item replaces the previous version as a whole, got {title}"
        )
        return InvalidLine("", problem, fields)
    return Item.model_validate({name: value for name, value in fields.items() if value is not None})


def _price(event: _Event) -> float | None:
    """Return the first price that is a number, or a list of one number."""
    values = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in event.named("price"))
    return next((price for value in values if (price := parse_price(value)) is not None), None)


def _text(value: Any) -> str | None:
    """Return the value of a field as one text; None if it is no text.

    A field may have several values (the genres of a film) or be a number (the book 1984).
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(_single_text, value))) or None
    return _single_text(value)


def _single_text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
