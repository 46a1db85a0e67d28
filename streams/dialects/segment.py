"""Segment's e-commerce events (v2), which RudderStack also uses: ``track`` calls with the names of the specification.

``Product List Viewed`` and ``Product List Filtered`` are impressions; ``Product Clicked`` and ``Product Viewed`` are
clicks, ``Order Completed`` is a purchase of each of its products. ``Product Added`` is a click, too: it shows at least
as much interest as opening the product, we have no event between click and purchase, and as a purchase it would teach
sales that mostly never happen.
"""

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from streams.dialects.common import (
    Decoded,
    EventFields,
    Foreign,
    ItemLine,
    OrderId,
    SourceRecord,
    Text,
    Time,
    clicks_of,
    impression_of,
    none_if_empty,
    parse_lines,
    parse_position,
    parse_price,
    purchases_of,
)
from streams.validation_errors import summarize

LISTS = frozenset({"Product List Viewed", "Product List Filtered"})
CLICKS = frozenset({"Product Clicked", "Product Viewed", "Product Added"})
ORDER = "Order Completed"

TimeOrNone = Annotated[Time | None, BeforeValidator(none_if_empty)]


def _line(product: dict[str, Any], where: str, *, first: int = 1) -> ItemLine:
    """Return the line of a product, with its position counted from 0.

    Args:
        product: the product as it was sent.
        where: the path to it within the call.
        first: the position of the first product of the list.
    """
    position = parse_position(product.get("position"))
    product_id, sku = product.get("product_id"), product.get("sku")
    return ItemLine(
        where,
        item_id=product_id if none_if_empty(product_id) is not None or none_if_empty(sku) is None else sku,
        position=None if position is None else max(0, position - first),
        quantity=product.get("quantity"),
        price=parse_price(product.get("price")),
    )


def _products(value: object) -> object:
    if not isinstance(value, list) or not value:
        got = "none" if value is None or value == [] else summarize(value)
        raise ValueError(f"must be a list of at least one product, got {got}")
    return value


class _Listed(Foreign):
    products: Annotated[list[Any], BeforeValidator(_products)] = Field(None, validate_default=True)
    request_id: Text = None
    query: Text = None
    order_id: OrderId = None

    def lines(self) -> list[ItemLine]:
        # The specification counts from 1; a list with position 0 was counted from 0.
        positions = [parse_position(product.get("position")) for product in self.products if isinstance(product, dict)]
        first = 0 if 0 in positions else 1
        return parse_lines(self.products, partial(_line, first=first), path="properties.products")


class _Single(Foreign):
    request_id: Text = None


class _Context(Foreign):
    session: Text = Field(None, validation_alias="sessionId")


class _Call(Foreign):
    type: str
    event: Any = None


class _Track(Foreign):
    message_id: Text = Field(None, validation_alias="messageId")
    user: Text = Field(None, validation_alias="userId")
    device: Text = Field(None, validation_alias="anonymousId")
    time: TimeOrNone = Field(None, validation_alias="timestamp")  # corrected for the skew of the client's clock
    original_time: TimeOrNone = Field(None, validation_alias="originalTimestamp")
    context: _Context | None = None

    def common(self, source: SourceRecord, *, request_id: str | None, order_id: str | None = None) -> EventFields:
        time = self.original_time if self.time is None else self.time
        return EventFields(
            event_id=self.message_id or source.event_id(has_time=time is not None),
            ts=source.received_ms if time is None else time,
            user_id=self.user or self.device,
            session_id=self.context.session if self.context else None,
            request_id=request_id,
            order_id=order_id,
        )


class _ListTrack(_Track):
    properties: _Listed


class _SingleTrack(_Track):
    properties: dict[str, Any]


def decode_segment(source: SourceRecord) -> Decoded:
    """Decode one record. A call without a time has that of the record.

    Args:
        source: one call as Segment or RudderStack deliver it.

    Raises:
        ValidationError: if the call does not conform to their specification.
    """
    call = _Call.model_validate_json(source.payload)
    if call.type != "track" or not isinstance(call.event, str):
        return []
    if call.event in CLICKS:
        single = _SingleTrack.model_validate_json(source.payload)
        common = single.common(source, request_id=_Single.model_validate(single.properties).request_id)
        return clicks_of(common, [_line(single.properties, "properties")])
    if call.event not in LISTS and call.event != ORDER:
        return []
    track = _ListTrack.model_validate_json(source.payload)
    listed = track.properties
    common = track.common(source, request_id=listed.request_id, order_id=listed.order_id)
    if call.event == ORDER:
        return purchases_of(common, listed.lines())
    return impression_of(common, listed.lines(), query=listed.query)
