"""What the dialects share: lenient fields, an id for events that have none, and the way to events of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from streams.events import MAX_COUNT, Click, EpochMs, Event, Impression, Purchase

SCENARIO = "home"  # none of the dialects has a word for it
# Of September 2001: less are seconds by mistake. Taken for events of 1970, they would hold back what waits for the
# time of all partitions.
FIRST_MS = 10**12
EMPTY = ("", "(not set)")  # the second is what GA4 exports where a producer gave nothing


class Foreign(BaseModel):
    """A part of others' events: what is not read here is ignored, and an id may be a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


def given(value: object) -> object:
    """Turns what stands for nothing into None.

    >>> [given(value) for value in ("", "(not set)", "a", 0)]
    [None, None, 'a', 0]
    """
    return None if isinstance(value, str) and value in EMPTY else value


def whole(value: object) -> int | None:
    """A place in a list, from a number or its digits; None where it is no place ("Slide 3").

    >>> [whole(value) for value in (3, "3", 3.0, -1, "Slide 3", None)]
    [3, 3, 3, None, None, None]
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(MAX_COUNT)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value) if value == int(value) else None


Text = Annotated[str | None, BeforeValidator(given)]
Place = Annotated[int | None, BeforeValidator(whole)]
Raw = Annotated[Any, BeforeValidator(given)]  # our own models judge it
Time = Annotated[EpochMs, Field(ge=FIRST_MS)]


def content_id(payload: bytes) -> str:
    """An id for an event without one: the same bytes have the same id, so that a repeat is dropped."""
    return sha256(payload).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Common:
    """What all events that one record gives have in common; what is None was not said."""

    event_id: str
    ts: int  # epoch ms
    user_id: str | None
    session_id: str | None = None
    request_id: str | None = None


# A tuple, because there are many: a frozen dataclass takes more than twice the time to make.
class Line(NamedTuple):
    """One item of an event: of a list, a cart or an order."""

    item_id: str | None
    position: int | None = None  # 0 is the first
    quantity: Any = None
    price: Any = None


def shown(common: Common, lines: Sequence[Line], *, query: str | None = None) -> list[Event]:
    """One impression; an item that does not say its place has the one at which it stands in the list.

    Raises:
        ValidationError: If a rule of our own events is broken.
    """
    items: list[dict[str, Any]] = [
        {"item_id": line.item_id, "position": place if line.position is None else line.position}
        for place, line in enumerate(lines)
    ]
    for item in items:
        if item["item_id"] is None:
            del item["item_id"]
    request_id = common.request_id or common.event_id
    return [Impression.model_validate(_fields(common, request_id=request_id, query=query, items=items))]


def clicked(common: Common, lines: Sequence[Line]) -> list[Event]:
    """A click on each item.

    Raises:
        ValidationError: If a rule of our own events is broken.
    """
    return [
        Click.model_validate(_fields(common, event_id=event_id, item_id=line.item_id, position=line.position))
        for event_id, line in _numbered(common, lines)
    ]


def bought(common: Common, lines: Sequence[Line]) -> list[Event]:
    """A purchase of each item.

    Raises:
        ValidationError: If a rule of our own events is broken.
    """
    return [
        Purchase.model_validate(
            _fields(common, event_id=event_id, item_id=line.item_id, quantity=line.quantity, price=line.price)
        )
        for event_id, line in _numbered(common, lines)
    ]


def _numbered(common: Common, lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """The lines with their event ids: the event's own for a single one, ``<event id>/<n>`` for several."""
    if len(lines) == 1:
        return [(common.event_id, lines[0])]
    return [(f"{common.event_id}/{number}", line) for number, line in enumerate(lines)]


def _fields(common: Common, **own: Any) -> dict[str, Any]:
    return _said(
        **{
            "event_id": common.event_id,
            "ts": common.ts,
            "user_id": common.user_id,
            "session_id": common.session_id,
            "request_id": common.request_id,
            "scenario": SCENARIO,
            **own,
        }
    )


def _said(**fields: Any) -> dict[str, Any]:
    """Leaves out what was not said, so that our models give their default, or ask for it by name."""
    return {name: value for name, value in fields.items() if value is not None}
