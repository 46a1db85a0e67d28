"""Segment's e-commerce events (v2), which RudderStack's follow: ``track`` calls under their names in the spec.

``Product List Viewed`` and ``Product List Filtered`` are impressions; ``Product Clicked`` and ``Product Viewed`` are
clicks, ``Order Completed`` is a purchase of each of its products. ``Product Added`` is a click, too: it says at least
as much interest as opening the product does, there is no event of ours between a click and a purchase, and as a
purchase it would teach sales that mostly never happen.
"""

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from streams.dialects.common import (
    Common,
    Decoded,
    Foreign,
    Line,
    OrderId,
    Source,
    Text,
    Time,
    amount,
    bought,
    clicked,
    given,
    lines_of,
    shown,
    whole,
)
from streams.validation_errors import summarize

LISTS = frozenset({"Product List Viewed", "Product List Filtered"})
CLICKS = frozenset({"Product Clicked", "Product Viewed", "Product Added"})
ORDER = "Order Completed"

TimeOrNone = Annotated[Time | None, BeforeValidator(given)]


def _line(product: dict[str, Any], where: str, *, first: int = 1) -> Line:
    """A product as ours, counting places from 0.

    Args:
        product: As it was sent.
        where: The path to it within the call.
        first: The place that the first of the list has in theirs.
    """
    place = whole(product.get("position"))
    product_id, sku = product.get("product_id"), product.get("sku")
    return Line(
        where,
        item_id=product_id if given(product_id) is not None or given(sku) is None else sku,
        position=None if place is None else max(0, place - first),
        quantity=product.get("quantity"),
        price=amount(product.get("price")),
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

    def lines(self) -> list[Line]:
        # The spec counts from 1; a list with a 0 in it was counted from there.
        places = [whole(product.get("position")) for product in self.products if isinstance(product, dict)]
        first = 0 if 0 in places else 1
        return lines_of(self.products, partial(_line, first=first), path="properties.products")


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
    own_time: TimeOrNone = Field(None, validation_alias="originalTimestamp")
    context: _Context | None = None

    def common(self, source: Source, *, request_id: str | None, order_id: str | None = None) -> Common:
        time = self.own_time if self.time is None else self.time
        return Common(
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


def decode_segment(source: Source) -> Decoded:
    """Reads one record. A call that has no time of its own has that of the record.

    Args:
        source: One call as Segment or RudderStack deliver it.

    Raises:
        ValidationError: If it is not as their specification has it.
    """
    call = _Call.model_validate_json(source.payload)
    if call.type != "track" or not isinstance(call.event, str):
        return []
    if call.event in CLICKS:
        single = _SingleTrack.model_validate_json(source.payload)
        common = single.common(source, request_id=_Single.model_validate(single.properties).request_id)
        return clicked(common, [_line(single.properties, "properties")])
    if call.event not in LISTS and call.event != ORDER:
        return []
    track = _ListTrack.model_validate_json(source.payload)
    said = track.properties
    common = track.common(source, request_id=said.request_id, order_id=said.order_id)
    if call.event == ORDER:
        return bought(common, said.lines())
    return shown(common, said.lines(), query=said.query)
