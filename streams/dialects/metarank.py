"""Metarank's events: ``ranking`` is an impression, ``interaction`` a click or a purchase, ``item`` an item.

Of interactions, whose types each shop names for itself, ``click``, ``view`` and ``like`` are clicks and ``purchase``
is a purchase; other types (a dislike would be one) say nothing to us, nor does ``user``.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from streams.dialects.common import Common, Foreign, Line, Text, Time, bought, clicked, content_id, shown
from streams.events import Event, Item

CLICKS = frozenset({"click", "view", "like"})
PURCHASE = "purchase"
ITEM_FIELDS = ("title", "description", "category", "brand", "price", "kind", "status")


def _from_digits(value: object) -> object:
    """Epoch milliseconds as a string are what Metarank recommends."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 else value


class _Field(Foreign):
    name: str
    value: Any = None


class _Event(Foreign):
    id: Text = None
    ts: Annotated[Time, BeforeValidator(_from_digits)] = Field(validation_alias="timestamp")
    fields: list[_Field] | None = None

    def event_id(self, payload: bytes) -> str:
        return self.id or content_id(payload)

    def named(self, *names: str) -> Any:
        """The value of the first field of that name, None where there is none."""
        return next((field.value for field in self.fields or () if field.name in names), None)


class _Feedback(_Event):
    user: Text = None
    session: Text = None

    def common(self, payload: bytes, request_id: str | None) -> Common:
        return Common(self.event_id(payload), self.ts, self.user or self.session, self.session, request_id)


class _Shown(Foreign):
    id: Text = None


class _Ranking(_Feedback):
    items: Annotated[list[_Shown], Field(min_length=1)]


class _Interaction(_Feedback):
    type: str
    item: Text = None
    ranking: Text = None


class _Item(_Event):
    item: Text = None


class _Envelope(Foreign):
    event: Literal["item", "metadata", "user", "ranking", "interaction"]  # `metadata`: an older name of `item`


def decode_metarank(payload: bytes, received_ms: int) -> list[Event]:
    """Reads one record.

    Args:
        payload: One event.
        received_ms: Not needed: Metarank's events have a time.

    Raises:
        ValidationError: If it is not as Metarank or our own rules have it.
    """
    kind = _Envelope.model_validate_json(payload).event
    if kind == "ranking":
        return _ranking(payload)
    if kind == "interaction":
        return _interaction(payload)
    return [] if kind == "user" else [_item(payload)]


def _ranking(payload: bytes) -> list[Event]:
    ranking = _Ranking.model_validate_json(payload)
    common = ranking.common(payload, ranking.id)
    return shown(common, [Line(item.id) for item in ranking.items], query=_text(ranking.named("query")))


def _interaction(payload: bytes) -> list[Event]:
    interaction = _Interaction.model_validate_json(payload)
    common = interaction.common(payload, interaction.ranking)
    if interaction.type in CLICKS:
        return clicked(common, [Line(interaction.item)])
    if interaction.type != PURCHASE:
        return []
    quantity, price = interaction.named("quantity", "count"), interaction.named("price")
    return bought(common, [Line(interaction.item, quantity=quantity, price=price)])


def _item(payload: bytes) -> Item:
    item = _Item.model_validate_json(payload)
    fields = {name: _text(value) for name in ITEM_FIELDS if (value := item.named(name)) is not None}
    return Item.model_validate(
        {"kind": "product"} | fields | {"event_id": item.event_id(payload), "ts": item.ts, "item_id": item.item}
    )


def _text(value: Any) -> Any:
    """A field may have several values (a film its genres), or a number (the book 1984); ours are one text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if isinstance(value, int | float) else value
