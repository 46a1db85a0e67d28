"""GA4 e-commerce: rows of the BigQuery export, bodies of the Measurement Protocol, single events of gtag.

``view_item_list`` is an impression; ``select_item`` and ``view_item`` are clicks, ``purchase`` is a purchase of each
of its items. ``add_to_cart`` is a click, too: it shows at least as much interest as opening the item, we have no event
between click and purchase, and as a purchase it would teach sales that mostly never happen.
"""

from typing import Annotated, Any, Self

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from streams.dialects.common import (
    Decoded,
    EventFields,
    Foreign,
    InvalidLine,
    ItemLine,
    OrderId,
    SourceRecord,
    Text,
    clicks_of,
    impression_of,
    none_if_empty,
    parse_lines,
    parse_order_id,
    parse_position,
    parse_price,
    purchases_of,
)
from streams.dialects.times import epoch_microseconds
from streams.validation_errors import describe_errors, summarize

CLICKS = frozenset({"select_item", "view_item", "add_to_cart"})
UNDERSTOOD = CLICKS | {"view_item_list", "purchase"}


def _by_name(params: object) -> object:
    """Turn the export's list of keys and typed values into a mapping, as the other formats have it."""
    if not isinstance(params, list):
        return {} if params is None else params
    pairs = [(param.get("key"), param.get("value")) for param in params if isinstance(param, dict)]
    return {key: _typed(value) for key, value in pairs if isinstance(key, str)}


def _typed(value: object) -> object:
    """Return the one of ``string_value``, ``int_value`` … that is set."""
    return next((typed for typed in value.values() if typed is not None), None) if isinstance(value, dict) else value


def _line(item: dict[str, Any], where: str) -> ItemLine:
    index = parse_position(item.get("index"))
    if index is None:
        index = parse_position(item.get("item_list_index"))  # its name in the export
    return ItemLine(
        where,
        item_id=item.get("item_id"),
        position=index,
        quantity=item.get("quantity"),
        price=parse_price(item.get("price")),
    )


class _Ga4(Foreign):
    """Base of models whose fields have several names: an empty value leaves the field to the next name."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if none_if_empty(value) is not None}


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
    ecommerce: Any = None  # in the export
    items: list[Any] | None = None

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if not (self.items or self.params.items):
            raise ValueError(f"`items` of {self.name} must have at least one item, got none")
        return self

    def lines(self, within: str) -> list[ItemLine]:
        return parse_lines(self.items or self.params.items or (), _line, path=f"{within}items")

    def common(self, source: SourceRecord, id_suffix: str) -> EventFields:
        return EventFields(
            event_id=self.params.event_id or source.event_id(has_time=self.micros is not None) + id_suffix,
            ts=source.received_ms if self.micros is None else self.micros // 1000,
            user_id=self.user_id or self.device,
            session_id=self.params.session,
            request_id=self.params.request_id,
            order_id=self.params.transaction_id or self._exported_order_id(),
        )

    def _exported_order_id(self) -> str | None:
        return parse_order_id(self.ecommerce.get("transaction_id")) if isinstance(self.ecommerce, dict) else None


class _Envelope(_Ga4):
    """One event, or several under ``events`` that share user and time, as in the Measurement Protocol."""

    name: str | None = Field(None, validation_alias=AliasChoices("event_name", "name"))
    events: list[Any] | None = None

    @model_validator(mode="after")
    def _is_an_event(self) -> Self:
        if self.name is None and self.events is None:
            raise ValueError("an event must have `event_name` or `name`, a request `events`; got none of them")
        return self


_json_object = TypeAdapter(dict[str, Any]).validator


def decode_ga4(source: SourceRecord) -> Decoded:
    """Decode one record. An event without a time has that of the record, as the protocol specifies.

    Args:
        source: a row of the export, a request of the Measurement Protocol, or one event.

    Raises:
        ValidationError: if the record does not conform to GA4.
    """
    record = _json_object.validate_json(source.payload)
    events = _Envelope.model_validate(record).events
    if events is None:
        return _decode_event(record, source)
    shared = {name: value for name, value in record.items() if name != "events"}
    decoded: Decoded = []
    for number, event in enumerate(events):
        decoded += _decode_part(shared, event, source, number, len(events))
    return decoded


def _decode_part(shared: dict[str, Any], event: Any, source: SourceRecord, number: int, count: int) -> Decoded:
    """Decode one event of a request; an invalid event does not affect the others."""
    where = f"events.{number}"
    if not isinstance(event, dict):
        return [InvalidLine(where, f"{where}: must be an object, got {summarize(event)}", {"event": event})]
    try:
        suffix = "" if count == 1 else f"/{number}"
        decoded = _decode_event(shared | event, source, id_suffix=suffix, within=f"{where}.")
        return [line.within(where) if isinstance(line, InvalidLine) else line for line in decoded]
    except ValidationError as error:
        return [InvalidLine(where, f"{where}: {describe_errors(error)}", event)]


def _decode_event(event: dict[str, Any], source: SourceRecord, *, id_suffix: str = "", within: str = "") -> Decoded:
    """Decode one event.

    Args:
        event: the event with the shared fields of its request.
        source: the record of the event.
        id_suffix: the suffix of the id of an event in a record with several events.
        within: the path to the event, ending in a dot.
    """
    name = event.get("event_name") or event.get("name")
    if not isinstance(name, str) or name not in UNDERSTOOD:
        return []
    model = _Event.model_validate(event)
    common, lines = model.common(source, id_suffix), model.lines(within)
    if name in CLICKS:
        return clicks_of(common, lines)
    return (
        purchases_of(common, lines)
        if name == "purchase"
        else impression_of(common, lines, query=model.params.search_term)
    )
