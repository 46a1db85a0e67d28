"""GA4 e-commerce: rows of the BigQuery export, bodies of the Measurement Protocol, single events as gtag has them.

``view_item_list`` is an impression; ``select_item`` and ``view_item`` are clicks, ``purchase`` is a purchase of each
of its items. ``add_to_cart`` is a click, too: it says at least as much interest as opening the item does, there is no
event of ours between a click and a purchase, and as a purchase it would teach sales that mostly never happen.
"""

from typing import Annotated, Any, Self

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from streams.dialects.common import (
    BadLine,
    Common,
    Decoded,
    Foreign,
    Line,
    OrderId,
    Source,
    Text,
    amount,
    bought,
    clicked,
    given,
    lines_of,
    order_id,
    shown,
    whole,
)
from streams.dialects.times import epoch_microseconds
from streams.validation_errors import describe_errors, summarize

CLICKS = frozenset({"select_item", "view_item", "add_to_cart"})
UNDERSTOOD = CLICKS | {"view_item_list", "purchase"}


def _by_name(params: object) -> object:
    """Turn the export's list of keys and typed values into a mapping, which the other shapes have already."""
    if not isinstance(params, list):
        return {} if params is None else params
    pairs = [(param.get("key"), param.get("value")) for param in params if isinstance(param, dict)]
    return {key: _typed(value) for key, value in pairs if isinstance(key, str)}


def _typed(value: object) -> object:
    """The one of ``string_value``, ``int_value`` … that is set."""
    return next((one for one in value.values() if one is not None), None) if isinstance(value, dict) else value


def _line(item: dict[str, Any], where: str) -> Line:
    place = whole(item.get("index"))
    return Line(
        where,
        item_id=item.get("item_id"),
        position=whole(item.get("item_list_index")) if place is None else place,  # the export's name for `index`
        quantity=item.get("quantity"),
        price=amount(item.get("price")),
    )


class _Ga4(Foreign):
    """A part of an event whose fields have several names: one that is not given leaves the next name its turn."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_given(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if given(value) is not None}


class _Params(_Ga4):
    session: Text = Field(None, validation_alias=AliasChoices("ga_session_id", "session_id"))
    search_term: Text = None
    request_id: Text = None
    event_id: Text = None
    transaction_id: OrderId = None
    items: list[Any] | None = None


class _Event(_Ga4):
    name: str = Field(validation_alias=AliasChoices("event_name", "name"))
    micros: Annotated[int, BeforeValidator(epoch_microseconds)] | None = Field(
        None, validation_alias=AliasChoices("event_timestamp", "timestamp_micros")
    )
    user_id: Text = None
    device: Text = Field(None, validation_alias=AliasChoices("user_pseudo_id", "client_id", "app_instance_id"))
    params: Annotated[_Params, BeforeValidator(_by_name)] = Field(
        _Params(), validation_alias=AliasChoices("event_params", "params")
    )
    ecommerce: Any = None  # of the export
    items: list[Any] | None = None

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if not (self.items or self.params.items):
            raise ValueError(f"`items` of {self.name} must have at least one item, got none")
        return self

    def lines(self, within: str) -> list[Line]:
        return lines_of(self.items or self.params.items or (), _line, path=f"{within}items")

    def common(self, source: Source, place: str) -> Common:
        return Common(
            event_id=self.params.event_id or source.event_id(has_time=self.micros is not None) + place,
            ts=source.received_ms if self.micros is None else self.micros // 1000,
            user_id=self.user_id or self.device,
            session_id=self.params.session,
            request_id=self.params.request_id,
            order_id=self.params.transaction_id or self._exported_order_id(),
        )

    def _exported_order_id(self) -> str | None:
        return order_id(self.ecommerce.get("transaction_id")) if isinstance(self.ecommerce, dict) else None


class _Envelope(_Ga4):
    """One event, or several under ``events`` that share user and time, as the Measurement Protocol sends them."""

    name: str | None = Field(None, validation_alias=AliasChoices("event_name", "name"))
    events: list[Any] | None = None

    @model_validator(mode="after")
    def _is_an_event(self) -> Self:
        if self.name is None and self.events is None:
            raise ValueError("an event must have `event_name` or `name`, a request `events`; got none of them")
        return self


_json_object = TypeAdapter(dict[str, Any]).validator


def decode_ga4(source: Source) -> Decoded:
    """Reads one record. An event that has no time of its own has that of the record, as the protocol says.

    Args:
        source: A row of the export, a request of the Measurement Protocol, or one event.

    Raises:
        ValidationError: If it is not as GA4 has it.
    """
    record = _json_object.validate_json(source.payload)
    events = _Envelope.model_validate(record).events
    if events is None:
        return _read(record, source)
    shared = {name: value for name, value in record.items() if name != "events"}
    found: Decoded = []
    for number, event in enumerate(events):
        found += _of_request(shared, event, source, number, len(events))
    return found


def _of_request(shared: dict[str, Any], event: Any, source: Source, number: int, count: int) -> Decoded:
    """Reads one event of a request; a bad one does not take the others with it."""
    where = f"events.{number}"
    if not isinstance(event, dict):
        return [BadLine(where, f"{where}: must be an object, got {summarize(event)}", {"event": event})]
    try:
        found = _read(shared | event, source, place="" if count == 1 else f"/{number}", within=f"{where}.")
        return [one.within(where) if isinstance(one, BadLine) else one for one in found]
    except ValidationError as error:
        return [BadLine(where, f"{where}: {describe_errors(error)}", event)]


def _read(event: dict[str, Any], source: Source, *, place: str = "", within: str = "") -> Decoded:
    """Reads one event.

    Args:
        event: With what its request says of all.
        source: The record.
        place: Added to the id of the record where it has several events.
        within: The path to the event, which ends in a dot.
    """
    name = event.get("event_name") or event.get("name")
    if not isinstance(name, str) or name not in UNDERSTOOD:
        return []
    said = _Event.model_validate(event)
    common, lines = said.common(source, place), said.lines(within)
    if name in CLICKS:
        return clicked(common, lines)
    return bought(common, lines) if name == "purchase" else shown(common, lines, query=said.params.search_term)
