"""Segment's e-commerce events (v2), which RudderStack's follow: ``track`` calls under their names in the spec.

``Product List Viewed`` and ``Product List Filtered`` are impressions; ``Product Clicked`` and ``Product Viewed`` are
clicks, ``Order Completed`` is a purchase of each of its products. ``Product Added`` is a click, too: it says at least
as much interest as opening the product does, there is no event of ours between a click and a purchase, and as a
purchase it would teach sales that mostly never happen.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from streams.dialects.common import (
    Common,
    Foreign,
    Line,
    Place,
    Raw,
    Text,
    Time,
    bought,
    clicked,
    content_id,
    given,
    shown,
)
from streams.events import Event

LISTS = frozenset({"Product List Viewed", "Product List Filtered"})
CLICKS = frozenset({"Product Clicked", "Product Viewed", "Product Added"})
ORDER = "Order Completed"

TimeOrNone = Annotated[Time | None, BeforeValidator(given)]


class _Product(Foreign):
    product_id: Text = None
    sku: Text = None
    position: Place = None
    quantity: Raw = None
    price: Raw = None

    def line(self, *, first: int = 1) -> Line:
        """As ours, counting places from 0.

        Args:
            first: The place that the first of the list has in theirs.
        """
        position = None if self.position is None else max(0, self.position - first)
        return Line(self.product_id or self.sku, position, self.quantity, self.price)


class _Listed(Foreign):
    products: Annotated[list[_Product], Field(min_length=1)]
    request_id: Text = None
    query: Text = None

    def lines(self) -> list[Line]:
        # The spec counts from 1; a list with a 0 in it was counted from there.
        first = 0 if any(product.position == 0 for product in self.products) else 1
        return [product.line(first=first) for product in self.products]


class _Single(_Product):
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

    def common(self, payload: bytes, request_id: str | None, received_ms: int) -> Common:
        times = (self.time, self.own_time, received_ms)
        return Common(
            event_id=self.message_id or content_id(payload),
            ts=next(time for time in times if time is not None),
            user_id=self.user or self.device,
            session_id=self.context.session if self.context else None,
            request_id=request_id,
        )


class _ListTrack(_Track):
    properties: _Listed


class _SingleTrack(_Track):
    properties: _Single


def decode_segment(payload: bytes, received_ms: int) -> list[Event]:
    """Reads one record.

    Args:
        payload: One call as Segment or RudderStack deliver it.
        received_ms: Stands in where a call has no time of its own.

    Raises:
        ValidationError: If it is not as their specification or our own rules have it.
    """
    call = _Call.model_validate_json(payload)
    if call.type != "track" or not isinstance(call.event, str):
        return []
    if call.event in CLICKS:
        single = _SingleTrack.model_validate_json(payload)
        common = single.common(payload, single.properties.request_id, received_ms)
        return clicked(common, [single.properties.line()])
    if call.event not in LISTS and call.event != ORDER:
        return []
    track = _ListTrack.model_validate_json(payload)
    common, lines = track.common(payload, track.properties.request_id, received_ms), track.properties.lines()
    return bought(common, lines) if call.event == ORDER else shown(common, lines, query=track.properties.query)
