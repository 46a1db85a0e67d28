"""Shared parts of the dialects: lenient fields, ids for events that have none, and construction of our own events."""

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

SCENARIO = "home"  # none of the dialects has such a field
EMPTY = ("", "(not set)")  # GA4 exports the second for a value that the producer left out
# Placeholders of pages without an order id. As ids, they would make all orders repeats of the first.
NO_ORDER = frozenset(
    {*EMPTY, "(not provided)", "(other)", "undefined", "null", "none", "nan", "inf", "-inf", "0", "-", "n/a", "unknown"}
    | {"[object object]"}
)
LINE_FIELDS = ("item_id", "position", "quantity", "price")


class Foreign(BaseModel):
    """Base of the models of foreign events: unknown fields are ignored, and an id may be a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


def none_if_empty(value: object) -> object:
    """Turn a placeholder for a missing value into None.

    >>> [none_if_empty(value) for value in ("", "(not set)", "a", 0)]
    [None, None, 'a', 0]
    """
    return None if isinstance(value, str) and value in EMPTY else value


def parse_position(value: object) -> int | None:
    """Return a position in a list, from a number or its digits; None if it is no position ("Slide 3").

    >>> [parse_position(value) for value in (3, "3", 3.0, -1, "Slide 3", None)]
    [3, 3, 3, None, None, None]
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(MAX_COUNT)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value) if value == int(value) else None


def parse_price(value: object) -> float | None:
    """Return a price; None if it is no plain number. A negative one stays: our own models reject it.

    >>> [parse_price(value) for value in (2.55, "2.55", 3, "12,50", "$12.50", "nan", True, [1])]
    [2.55, 2.55, 3.0, None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def id_of_number(value: float) -> str:
    """Return a number as an id; 17.0 is the same id as 17.

    >>> [id_of_number(value) for value in (17, 17.0, 17.5, float("inf"))]
    ['17', '17', '17.5', 'inf']
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_order_id(value: object) -> str | None:
    """Return the id of an order; None for a placeholder. An id that is too long becomes its digest.

    >>> [parse_order_id(value) for value in ("T-1", 17, 17.0, " T-1 ", "(not set)", "undefined", 0, None, ["T-1"])]
    ['T-1', '17', '17', 'T-1', None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = value.strip() if isinstance(value, str) else id_of_number(value)
    if text.casefold() in NO_ORDER:
        return None
    return text if len(text) <= MAX_ID_CHARS else sha256(text.encode()).hexdigest()


Text = Annotated[str | None, BeforeValidator(none_if_empty)]
OrderId = Annotated[str | None, BeforeValidator(parse_order_id)]
Time = Annotated[EpochMs, Field(ge=FIRST_MS), BeforeValidator(epoch_milliseconds)]


class SourceRecord(NamedTuple):
    """The record to decode.

    Attributes:
        payload: the value of the record.
        received_ms: when the log received it, epoch milliseconds.
        place: its topic, partition and offset.
    """

    payload: bytes
    received_ms: int
    place: tuple[str, int, int]

    def event_id(self, *, has_time: bool) -> str:
        """Return an id for an event that has none.

        The same bytes with the same time in them are a repeat. Without a time, the same bytes may be another visit, so
        place and time of the record become part of the id.

        Args:
            has_time: whether the event contains its time.
        """
        digest = sha256(self.payload)
        if not has_time:
            digest.update(repr((self.place, self.received_ms)).encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class EventFields:
    """The fields that all events of one record share; None for a missing one."""

    event_id: str
    ts: int  # epoch ms
    user_id: str | None
    session_id: str | None = None
    request_id: str | None = None
    order_id: str | None = None


# A tuple, because there are many: a frozen dataclass takes more than twice as long to construct.
class ItemLine(NamedTuple):
    """One item of a list, a cart or an order.

    Attributes:
        where: the path to it within the record, such as ``items.1``; empty for the record itself.
        item_id: the item id as it was sent, valid or not.
        position: the position in a list, from 0.
        quantity: the quantity as it was sent.
        price: the price, parsed by `parse_price`.
        problem: the reason why the line cannot be decoded at all; None if it can.
    """

    where: str
    item_id: Any
    position: int | None = None
    quantity: Any = None
    price: float | None = None
    problem: str | None = None


class InvalidLine(NamedTuple):
    """A part of a record that is rejected while the rest of it counts.

    Attributes:
        where: the path to it within the record, such as ``items.1``; empty for the record itself.
        problem: the values and the rules that they break.
        content: the event that it would have been, with the values as they were sent.
    """

    where: str
    problem: str
    content: dict[str, Any]

    def within(self, where: str) -> "InvalidLine":
        """Return the line with a path: a line for the whole input becomes one for a part of the record."""
        return self if self.where else InvalidLine(where, f"{where}: {self.problem}", self.content)

    def payload(self) -> bytes:
        """Return the content as JSON."""
        return json.dumps(self.content).encode()


Decoded = list[Event | InvalidLine]


def parse_lines(items: Sequence[Any], parse: Callable[[dict[str, Any], str], ItemLine], *, path: str) -> list[ItemLine]:
    """Parse each item of a list.

    Args:
        items: the items as they were sent.
        parse: returns the line of an item that is a JSON object and of the path to it.
        path: the path to the list within the record.
    """
    return [
        parse(item, f"{path}.{number}")
        if isinstance(item, dict)
        else ItemLine(f"{path}.{number}", None, problem=f"must be an object, got {summarize(item)}")
        for number, item in enumerate(items)
    ]


def impression_of(common: EventFields, lines: Sequence[ItemLine], *, query: str | None = None) -> Decoded:
    """Return one impression without the items that break a rule, and an `InvalidLine` for each of these.

    An item without a position has its index in the list as sent, including invalid items.

    Args:
        common: the fields of the list as a whole.
        lines: the items of the list.
        query: the search query that the list answers.
    """
    items = [_shown_item(line, index) for index, line in enumerate(lines)]
    fields = _fields(common, request_id=common.request_id or common.event_id, query=query)
    try:
        return [Impression.model_validate(fields | {"items": items})]
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems: dict[int, list[str]] = {}
    for detail in details:
        match detail["loc"]:
            case ("items", int(number), *rest):
                problems.setdefault(number, []).append(_line_error(detail, lines[number], rest))
            case ("items",) if lines:
                pass  # no item is valid; each has its own problem
            case _:  # a problem of the list as a whole: none of its items is valid
                return [InvalidLine("", describe_error(detail), {"type": Impression.KIND, **fields, "items": items})]
    invalid: Decoded = [
        InvalidLine(
            lines[number].where, "; ".join(texts), {"type": Impression.KIND, **fields, "items": [items[number]]}
        )
        for number, texts in problems.items()
    ]
    valid = [item for number, item in enumerate(items) if number not in problems]
    return [Impression.model_validate(fields | {"items": valid}), *invalid] if valid else invalid


def clicks_of(common: EventFields, lines: Sequence[ItemLine]) -> Decoded:
    """Return a click on each item.

    Args:
        common: the fields that all clicks share.
        lines: the items that were clicked.
    """
    return [
        _build(Click, _fields(common, event_id=event_id, position=line.position), line)
        for event_id, line in _numbered(common, lines)
    ]


def purchases_of(common: EventFields, lines: Sequence[ItemLine]) -> Decoded:
    """Return a purchase of each item.

    Args:
        common: the fields of the order as a whole.
        lines: the items of the order.
    """
    purchases: Decoded = []
    for event_id, line in _numbered(common, lines):
        order = {"order_id": common.order_id, "quantity": none_if_empty(line.quantity), "price": line.price}
        purchases.append(_build(Purchase, _fields(common, event_id=event_id, **order), line))
    return purchases


def _numbered(common: EventFields, lines: Sequence[ItemLine]) -> list[tuple[str, ItemLine]]:
    """Return the lines with their event ids: the event's id for a single line, ``<event id>/<n>`` for several.

    Invalid lines are numbered too, so that the ids of the others do not depend on them.
    """
    if len(lines) == 1:
        return [(common.event_id, lines[0])]
    return [(f"{common.event_id}/{number}", line) for number, line in enumerate(lines)]


def _build(model: type[Click] | type[Purchase], fields: dict[str, Any], line: ItemLine) -> Event | InvalidLine:
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
            _line_error(detail, line, detail["loc"]) if detail["loc"][0] in LINE_FIELDS else describe_error(detail)
            for detail in details
        )
    return InvalidLine(line.where, problem, {"type": model.KIND, **fields, "item_id": line.item_id})


def _shown_item(line: ItemLine, index: int) -> dict[str, Any]:
    item: dict[str, Any] = {"position": index if line.position is None else line.position}
    item_id = None if line.problem else _item_id(line.item_id)
    return item if item_id is None else {"item_id": item_id, **item}


def _item_id(value: Any) -> Any:
    """Return an item id for our models: a number as its digits, None for a placeholder."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return id_of_number(value)
    return none_if_empty(value)


def _line_error(detail: ErrorDetails, line: ItemLine, path: Sequence[int | str]) -> str:
    if line.problem is not None:
        return f"{line.where}: {line.problem}"
    text = describe_error(detail, path=(line.where, *path))
    return f"{text}, got {summarize(line.item_id)}" if detail["type"] == "missing" else text


def _fields(common: EventFields, **others: Any) -> dict[str, Any]:
    """Return the fields that are present; our models fill in defaults, or reject missing fields by name."""
    fields = {
        "event_id": common.event_id,
        "ts": common.ts,
        "user_id": common.user_id,
        "session_id": common.session_id,
        "request_id": common.request_id,
        "scenario": SCENARIO,
        **others,
    }
    return {name: value for name, value in fields.items() if value is not None}
