"""GA4 e-commerce: rows of the BigQuery export, bodies of the Measurement Protocol, single events as gtag has them.

``view_item_list`` is an impression; ``select_item`` and ``view_item`` are clicks, ``purchase`` is a purchase of each
of its items. ``add_to_cart`` is a click, too: it says at least as much interest as opening the item does, there is no
event of ours between a click and a purchase, and as a purchase it would teach sales that mostly never happen.
"""

from typing import Annotated, Any, Self

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter, model_validator

from streams.dialects.common import (
    FIRST_MS,
    Common,
    Foreign,
    Line,
    Place,
    Raw,
    Text,
    bought,
    clicked,
    content_id,
    shown,
)
from streams.events import Event

CLICKS = frozenset({"select_item", "view_item", "add_to_cart"})
UNDERSTOOD = CLICKS | {"view_item_list", "purchase"}


def _by_name(params: object) -> object:
    """Turns the export's list of keys and typed values into a mapping, which the other shapes have already."""
    if not isinstance(params, list):
        return {} if params is None else params
    pairs = [(param.get("key"), param.get("value")) for param in params if isinstance(param, dict)]
    return {key: _typed(value) for key, value in pairs if isinstance(key, str)}


def _typed(value: object) -> object:
    """The one of ``string_value``, ``int_value`` … that is set."""
    return next((one for one in value.values() if one is not None), None) if isinstance(value, dict) else value


class _Item(Foreign):
    item_id: Text = None
    index: Place = None
    item_list_index: Place = None  # the export's name for `index`
    quantity: Raw = None
    price: Raw = None

    def line(self) -> Line:
        position = self.item_list_index if self.index is None else self.index
        return Line(self.item_id, position, self.quantity, self.price)


class _Params(Foreign):
    session: Text = Field(None, validation_alias=AliasChoices("ga_session_id", "session_id"))
    search_term: Text = None
    request_id: Text = None
    event_id: Text = None
    items: list[_Item] | None = None


class _Event(Foreign):
    name: str = Field(validation_alias=AliasChoices("event_name", "name"))
    micros: Annotated[int, Field(ge=FIRST_MS * 1000)] | None = Field(
        None, validation_alias=AliasChoices("event_timestamp", "timestamp_micros")
    )
    user_id: Text = None
    device: Text = Field(None, validation_alias=AliasChoices("user_pseudo_id", "client_id", "app_instance_id"))
    params: Annotated[_Params, BeforeValidator(_by_name)] = Field(
        _Params(), validation_alias=AliasChoices("event_params", "params")
    )
    items: list[_Item] | None = None

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if not (self.items or self.params.items):
            raise ValueError(f"`items` of {self.name} must have at least one item, got none")
        return self

    def lines(self) -> list[Line]:
        return [item.line() for item in self.items or self.params.items or ()]

    def common(self, event_id: str, received_ms: int) -> Common:
        return Common(
            event_id=self.params.event_id or event_id,
            ts=received_ms if self.micros is None else self.micros // 1000,
            user_id=self.user_id or self.device,
            session_id=self.params.session,
            request_id=self.params.request_id,
        )


class _Envelope(Foreign):
    """One event, or several under ``events`` that share user and time, as the Measurement Protocol sends them."""

    name: str | None = Field(None, validation_alias=AliasChoices("event_name", "name"))
    events: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _is_an_event(self) -> Self:
        if self.name is None and self.events is None:
            raise ValueError("an event must have `event_name` or `name`, a request `events`; got none of them")
        return self


_json_object = TypeAdapter(dict[str, Any]).validator


def decode_ga4(payload: bytes, received_ms: int) -> list[Event]:
    """Reads one record.

    Args:
        payload: A row of the export, a request of the Measurement Protocol, or one event.
        received_ms: Stands in where an event has no time of its own, which is what the protocol says of it.

    Raises:
        ValidationError: If it, or one of the events in it, is not as GA4 or our own rules have it.
    """
    record = _json_object.validate_json(payload)
    events, event_id = _Envelope.model_validate(record).events, content_id(payload)
    if events is None:
        return _read(record, event_id, received_ms)
    found: list[Event] = []
    for number, event in enumerate(events):
        found += _read(record | event, event_id if len(events) == 1 else f"{event_id}/{number}", received_ms)
    return found


def _read(record: dict[str, Any], event_id: str, received_ms: int) -> list[Event]:
    name = record.get("event_name") or record.get("name")
    if not isinstance(name, str) or name not in UNDERSTOOD:
        return []
    event = _Event.model_validate(record)
    common, lines = event.common(event_id, received_ms), event.lines()
    if name in CLICKS:
        return clicked(common, lines)
    return bought(common, lines) if name == "purchase" else shown(common, lines, query=event.params.search_term)
