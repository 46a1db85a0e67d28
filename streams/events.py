"""Models of the events that producers publish as JSON: impressions, clicks, purchases and catalogue items.

Unknown fields are ignored, so that producers may add their own; known fields must be valid.
"""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetPydanticSchema, WithJsonSchema
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

MAX_ID_CHARS = 256
MAX_TS_MS = 253_402_300_799_999  # the last millisecond of the year 9999
# In seconds these are 1985 to 5138; in milliseconds, five days to three years after the start of 1970.
SECONDS_FROM, SECONDS_UNTIL = 5 * 10**8, 10**11
_NANOSECONDS_FROM, _NANOSECONDS_UNTIL = 10**17, 10**21
TIME_ERROR = "time"  # pydantic's error type for a time in JSON
_NUMBER = re.compile(r"\s*[+-]?\d{1,25}(\.\d{0,25})?([eE][+-]?\d{1,3})?\s*", re.ASCII)
MAX_QUERY_CHARS = 512  # of a query that is learnt from; longer ones are truncated
MAX_COUNT = 2**31 - 1  # of positions and quantities: the range of stores and tensors
MAX_VECTOR_LENGTH = 2_048
MAX_VECTORS = 8  # of one item, and modalities of a catalogue

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Scenario = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Position = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Modality = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ItemKind = Literal["product", "article", "ad", "answer"]
Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=MAX_VECTOR_LENGTH)
]


def unit_problem(value: float) -> str | None:
    """Return why the unit of a number cannot be milliseconds; None if it can.

    Args:
        value: a time as a number.

    >>> unit_problem(1_764_500_000)
    'looks like seconds; `ts` must be epoch milliseconds, got 1764500000'
    >>> unit_problem(1_764_500_000_000)
    """
    if SECONDS_FROM <= value < SECONDS_UNTIL:
        unit = "seconds"
    elif MAX_TS_MS < value < _NANOSECONDS_UNTIL:
        unit = "microseconds" if value < _NANOSECONDS_FROM else "nanoseconds"
    else:
        return None
    return f"looks like {unit}; `ts` must be epoch milliseconds, got {str(value)[:40]}"


def parse_number(text: str) -> float | None:
    """Return the number that a text consists of; None if it is no number.

    Python parses some numbers as ISO 8601 dates: 1796070402006 as a day of the year 1796. Nobody writes dates that way.

    Args:
        text: a text that may be a time as a number.

    >>> parse_number("1796070402006"), parse_number("1.5"), parse_number("2026-01-31")
    (1796070402006, 1.5, None)
    """
    if _NUMBER.fullmatch(text) is None:
        return None
    return int(text) if text.strip().isdigit() else float(text)


def epoch_ms(value: object) -> object:
    """Turn an RFC 3339 time into epoch milliseconds; return other values to pydantic unchanged.

    Raises:
        ValueError: if a text is no RFC 3339 time, a time carries no UTC offset, or a number is not in milliseconds.

    >>> epoch_ms("2026-01-01T00:00:01.5Z")
    1767225601500
    """
    if type(value) is int and SECONDS_UNTIL <= value <= MAX_TS_MS:  # the most frequent case
        return value
    if isinstance(value, bool):
        raise ValueError(f"`ts` must be epoch milliseconds or an RFC 3339 time, got {value}")
    if isinstance(value, str):
        value = _rfc_3339(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"`ts` must carry a UTC offset, got {value.isoformat()}; add `Z` for UTC")
        value = round(value.timestamp() * 1000)
    if isinstance(value, int | float) and (problem := unit_problem(value)):
        raise ValueError(problem)
    return value


def _rfc_3339(text: str) -> datetime:
    number = parse_number(text)
    if number is not None:
        raise ValueError(
            unit_problem(number)
            or f"`ts` must be epoch milliseconds as a number of JSON, got the text {text[:40]!r}; write no quotes"
        )
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"`ts` must be epoch milliseconds or an RFC 3339 time, got {text[:40]!r}") from None


# RFC 3339 from 1974 to 9998: an earlier time is one in seconds that was read as milliseconds; after 9998, a UTC offset
# could exceed the range of event times. HTTP requests must match the pattern; on Kafka, every form that Python parses
# is accepted.
TIMESTAMP_PATTERN = (
    r"^(197[4-9]|19[89]\d|[2-8]\d{3}|9[0-8]\d{2}|99[0-8]\d|999[0-8])-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d"
    r"(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$"
)
_TIME_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": SECONDS_UNTIL, "maximum": MAX_TS_MS, "description": "epoch milliseconds, UTC"},
        {"type": "string", "format": "date-time", "pattern": TIMESTAMP_PATTERN, "description": "RFC 3339"},
        {
            "type": "integer",
            "minimum": 0,
            "exclusiveMaximum": SECONDS_FROM,
            "description": "milliseconds from an arbitrary origin, as in data sets without dates",
        },
    ]
}


def _time(_source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return a schema that checks JSON numbers without calling Python, which would take a fifth of a click's time."""
    any_form = core_schema.no_info_before_validator_function(epoch_ms, core_schema.int_schema(ge=0, le=MAX_TS_MS))
    number = core_schema.int_schema(strict=True, ge=SECONDS_UNTIL, le=MAX_TS_MS)
    of_json = core_schema.union_schema(
        [number, any_form],
        mode="left_to_right",
        custom_error_type=TIME_ERROR,
        custom_error_message="must be epoch milliseconds or an RFC 3339 time with its UTC offset, such as `Z`",
    )
    return core_schema.json_or_python_schema(of_json, any_form)


def time_problem(value: object) -> str | None:
    """Return the reason why a time was rejected with `TIME_ERROR`; None if it is unknown.

    Args:
        value: the rejected value.
    """
    try:
        epoch_ms(value)
    except ValueError as error:
        return str(error)
    return None


EpochMs = Annotated[int, GetPydanticSchema(_time), WithJsonSchema(_TIME_SCHEMA)]


class _Event(BaseModel):
    """Base of all events: an id for deduplication and the event time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    KIND: ClassVar[str]

    schema_version: Literal[1] = 1
    event_id: Id
    ts: EpochMs


class _UserEvent(_Event):
    user_id: Id
    session_id: Id | None = None

    def key(self) -> str:
        """Return the key on Kafka: all events of one user are in one partition, in order."""
        return self.user_id

    def order_line(self) -> str | None:
        """Return an id that repeats of an order's line share; None if the event names no order."""
        return None


# A mapping, because there are many: an impression of 24 items is parsed in half the time that models take.
class ShownItem(TypedDict):
    """One item of an impression and its position, from 0."""

    item_id: Id
    position: Position


class Impression(_UserEvent):
    """The items that a shopper was shown in answer to one request."""

    KIND: ClassVar[str] = "impression"

    request_id: Id
    scenario: Scenario
    query: str | None = None
    items: Annotated[tuple[ShownItem, ...], Field(min_length=1)]
    adapter_version: str | None = None


class Click(_UserEvent):
    """A click: a shopper opened an item."""

    KIND: ClassVar[str] = "click"

    request_id: Id | None = None
    scenario: Scenario = "home"
    item_id: Id
    position: Position | None = None
    query: str | None = None  # the search query that led to the event


class Purchase(_UserEvent):
    """A purchase: a shopper bought an item."""

    KIND: ClassVar[str] = "purchase"

    request_id: Id | None = None
    scenario: Scenario = "home"
    order_id: Id | None = None
    item_id: Id
    quantity: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    price: Price | None = None
    query: str | None = None

    def order_line(self) -> str | None:
        """Return an id of order and item, independent of producer and event id; None without an order."""
        return None if self.order_id is None else f"order/{len(self.order_id)}/{self.order_id}/{self.item_id}"


class Item(_Event):
    """An entry of the catalogue; the newest one of each `item_id` counts."""

    KIND: ClassVar[str] = "item"

    item_id: Id
    kind: ItemKind
    title: str
    description: str = ""
    category: str = ""
    brand: str = ""
    price: Price | None = None
    status: Literal["active", "blocked"] = "active"
    in_stock: bool = True
    # Vectors computed by others, by modality.
    vectors: Annotated[
        dict[Modality, Vector], Field(max_length=MAX_VECTORS, json_schema_extra={"additionalProperties": False})
    ] = {}

    def key(self) -> str:
        """Return the key on Kafka: compaction keeps the newest entry of each item."""
        return self.item_id


def normalize_query(query: str | None) -> str | None:
    """Return a search query with normalised spaces and bounded length; None without one.

    >>> normalize_query("  red   mug ")
    'red mug'
    """
    return (" ".join(query.split())[:MAX_QUERY_CHARS] or None) if query else None


UserEvent = Click | Purchase
Event = Impression | Click | Purchase | Item
SHOPPER_EVENTS = (Click, Purchase, Impression)  # clicks first: ruling out a model is slow
MODELS: dict[str, type[Impression] | type[Click] | type[Purchase] | type[Item]] = {
    model.KIND: model for model in (Impression, Click, Purchase, Item)
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each kind of event."""
    return {kind: model.model_json_schema(mode="validation") for kind, model in MODELS.items()}
