"""Decoders of foreign events: GA4 e-commerce, Segment or RudderStack, and Metarank.

A decoder turns a record into events of our own: several if it describes several, none if it has no usable event.
A line that cannot be decoded is an `InvalidLine` among them; a record that cannot be decoded raises pydantic's
`ValidationError`. The events are built through our own models, so that all their rules apply. docs/reference/events.md
lists the formats.
"""

from collections.abc import Callable

from streams.dialects.common import Decoded, InvalidLine, SourceRecord
from streams.dialects.ga4 import decode_ga4
from streams.dialects.metarank import decode_metarank
from streams.dialects.segment import decode_segment
from streams.topics import Dialect

__all__ = ["DECODERS", "InvalidLine", "SourceRecord"]

DECODERS: dict[Dialect, Callable[[SourceRecord], Decoded]] = {
    "ga4": decode_ga4,
    "segment": decode_segment,
    "metarank": decode_metarank,
}
