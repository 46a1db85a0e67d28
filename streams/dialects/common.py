"""What the dialects share: lenient fields, ids for events that have none, and the way to events of ours."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from streams.dialects.times import FIRST_MS, epoch_milliseconds
from streams.events import MAX_COUNT, MAX_ID_CHARS, Click, EpochMs, Event, Impression, Purchase
from streams.validation_errors import MAX_ERRORS, describe_error, summarize

SCENARIO = "home"  # none of the dialects has a word for it
EMPTY = ("", "(not set)")  # the second is what GA4 exports where a producer gave nothing
# Sent where a page had no order id at hand. Taken for an id, one of these would make all orders repeats of the first.
NO_ORDER = frozenset(
    {*EMPTY, "(not provided)", "(other)", "undefined", "null", "none", "nan", "inf", "-inf", "0", "-", "n/a", "unknown"}
    | {"[object object]"}
)
LINE_FIELDS = ("item_id", "position", "quantity", "price")


class Foreign(BaseModel):
    """A part of others' events: what is not read here is ignored, and an id may be a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


def given(value: object) -> object:
    """Turn what stands for nothing into None.

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


def amount(value: object) -> float | None:
    """Reads a price; None where it is no plain number. A negative one stays: our own models refuse it.

    >>> [amount(value) for value in (2.55, "2.55", 3, "12,50", "$12.50", "nan", True, [1])]
    [2.55, 2.55, 3.0, None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def digits(value: float) -> str:
    """Writes a number that is an id; 17.0 is the same one as 17.

    >>> [digits(value) for value in (17, 17.0, 17.5, float("inf"))]
    ['17', '17', '17.5', 'inf']
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def order_id(value: object) -> str | None:
    """Reads the id of an order; None where it identifies none. One that is too long becomes its digest.

    >>> [order_id(value) for value in ("T-1", 17, 17.0, " T-1 ", "(not set)", "undefined", 0, None, ["T-1"])]
    ['T-1', '17', '17', 'T-1', None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = value.strip() if isinstance(value, str) else digits(value)
    if text.casefold() in NO_ORDER:
        return None
    return text if len(text) <= MAX_ID_CHARS else sha256(text.encode()).hexdigest()


Text = Annotated[str | None, BeforeValidator(given)]
OrderId = Annotated[str | None, BeforeValidator(order_id)]
Time = Annotated[EpochMs, Field(ge=FIRST_MS), BeforeValidator(epoch_milliseconds)]


class Source(NamedTuple):
    """The record that is read.

    Attributes:
        payload: Its value.
        received_ms: When the log took it, epoch milliseconds.
        place: Its topic, partition and offset.
    """

    payload: bytes
    received_ms: int
    place: tuple[str, int, int]

    def event_id(self, *, has_time: bool) -> str:
        """An id for an event that has none of its own.

        The same bytes with the same time in them are a repeat. Without a time the same bytes may mean another visit, so
        the place and time of the record become part of the id.

        Args:
            has_time: Whether the event says when it happened.
        """
        digest = sha256(self.payload)
        if not has_time:
            digest.update(repr((self.place, self.received_ms)).encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Common:
    """What all events that one record gives have in common; what is None was not said."""

    event_id: str
    ts: int  # epoch ms
    user_id: str | None
    session_id: str | None = None
    request_id: str | None = None
    order_id: str | None = None


# A tuple, because there are many: a frozen dataclass takes more than twice the time to make.
class Line(NamedTuple):
    """One item of an event: of a list, a cart or an order.

    Attributes:
        where: The path to it within the record, such as ``items.1``; empty for the record itself.
        item_id: As it was sent, usable or not.
        position: Place in a list; 0 is the first.
        quantity: As it was sent.
        price: What `amount` read.
        problem: Why the line cannot be read at all; None where it can.
    """

    where: str
    item_id: Any
    position: int | None = None
    quantity: Any = None
    price: float | None = None
    problem: str | None = None


class BadLine(NamedTuple):
    """A part of a record that is refused while the rest of it counts.

    Attributes:
        where: The path to it within the record, such as ``items.1``; empty for the record itself.
        problem: Which values break which rules.
        content: The event that it would have been, with the values as they were sent.
    """

    where: str
    problem: str
    content: dict[str, Any]

    def within(self, where: str) -> "BadLine":
        """The same; if it stands for all that is read, it stands for a part of the record, at this path."""
        return self if self.where else BadLine(where, f"{where}: {self.problem}", self.content)

    def payload(self) -> bytes:
        """Its content as JSON."""
        return json.dumps(self.content).encode()


Decoded = list[Event | BadLine]


def lines_of(items: Sequence[Any], read: Callable[[dict[str, Any], str], Line], *, path: str) -> list[Line]:
    """Reads each item of a list.

    Args:
        items: As they were sent.
        read: Makes a line of an item that is a JSON object, and of the path to it.
        path: To the list within the record.
    """
    return [
        read(item, f"{path}.{number}")
        if isinstance(item, dict)
        else Line(f"{path}.{number}", None, problem=f"must be an object, got {summarize(item)}")
        for number, item in enumerate(items)
    ]


def shown(common: Common, lines: Sequence[Line], *, query: str | None = None) -> Decoded:
    """One impression, without the items that break a rule of ours.

    An item that does not say its place has the one at which it stands in the list, be others left out or not.

    Args:
        common: What the record says of the list as a whole.
        lines: The items.
        query: What was searched for.
    """
    items = [_shown(line, place) for place, line in enumerate(lines)]
    fields = _fields(common, request_id=common.request_id or common.event_id, query=query)
    try:
        return [Impression.model_validate(fields | {"items": items})]
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems: dict[int, list[str]] = {}
    for detail in details:
        match detail["loc"]:
            case ("items", int(number), *rest):
                problems.setdefault(number, []).append(_line_fault(detail, lines[number], rest))
            case ("items",) if lines:
                pass  # none of them can be used, which is said of each
            case _:  # of the list as a whole: no item of it can be used
                return [BadLine("", describe_error(detail), {"type": Impression.KIND, **fields, "items": items})]
    found: Decoded = [
        BadLine(lines[number].where, "; ".join(said), {"type": Impression.KIND, **fields, "items": [items[number]]})
        for number, said in problems.items()
    ]
    good = [item for number, item in enumerate(items) if number not in problems]
    return [Impression.model_validate(fields | {"items": good}), *found] if good else found


def clicked(common: Common, lines: Sequence[Line]) -> Decoded:
    """A click on each item.

    Args:
        common: What the record says of all of them.
        lines: The items.
    """
    return [
        _built(Click, _fields(common, event_id=event_id, position=line.position), line)
        for event_id, line in _numbered(common, lines)
    ]


def bought(common: Common, lines: Sequence[Line]) -> Decoded:
    """A purchase of each item.

    Args:
        common: What the record says of the order as a whole.
        lines: The items.
    """
    found: Decoded = []
    for event_id, line in _numbered(common, lines):
        own = {"order_id": common.order_id, "quantity": given(line.quantity), "price": line.price}
        found.append(_built(Purchase, _fields(common, event_id=event_id, **own), line))
    return found


def _numbered(common: Common, lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """The lines with their event ids: the event's own for a single one, ``<event id>/<n>`` for several.

    Bad lines are numbered too, so that the ids of the others do not depend on them.
    """
    if len(lines) == 1:
        return [(common.event_id, lines[0])]
    return [(f"{common.event_id}/{number}", line) for number, line in enumerate(lines)]


def _built(model: type[Click] | type[Purchase], fields: dict[str, Any], line: Line) -> Event | BadLine:
    item_id = _item_id(line.item_id)
    if item_id is not None:
        fields["item_id"] = item_id
    try:
        if line.problem is None:
            return model.model_validate(fields)
        problem = f"{line.where}: {line.problem}"
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_ERRORS]
        problem = "; ".join(
            _line_fault(detail, line, detail["loc"]) if detail["loc"][0] in LINE_FIELDS else describe_error(detail)
            for detail in details
        )
    return BadLine(line.where, problem, {"type": model.KIND, **fields, "item_id": line.item_id})


def _shown(line: Line, place: int) -> dict[str, Any]:
    item: dict[str, Any] = {"position": place if line.position is None else line.position}
    item_id = None if line.problem else _item_id(line.item_id)
    return item if item_id is None else {"item_id": item_id, **item}


def _item_id(value: Any) -> Any:
    """The id of an item as our models take it: a number as its digits, nothing for what stands for nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return digits(value)
    return given(value)


def _line_fault(detail: ErrorDetails, line: Line, path: Sequence[int | str]) -> str:
    if line.problem is not None:
        return f"{line.where}: {line.problem}"
    said = describe_error(detail, path=(line.where, *path))
    return f"{said}, got {summarize(line.item_id)}" if detail["type"] == "missing" else said


def _fields(common: Common, **own: Any) -> dict[str, Any]:
    """The fields that were said: our models give the others their default, or ask for them by name."""
    fields = {
        "event_id": common.event_id,
        "ts": common.ts,
        "user_id": common.user_id,
        "session_id": common.session_id,
        "request_id": common.request_id,
        "scenario": SCENARIO,
        **own,
    }
    return {name: value for name, value in fields.items() if value is not None}
