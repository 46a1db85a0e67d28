"""Events as others write them, read as ours: GA4 e-commerce, Segment or RudderStack, Metarank.

A decoder takes a record's bytes, time and place, and gives events of ours: several where one of theirs says several
things, none where it says nothing to us. A line that it cannot read is a `BadLine` among them; a record that it cannot
read it refuses with pydantic's `ValidationError`. The events are built through our own models, so that every rule of
ours holds for them too. The shapes read here are those of docs/reference/events.md.
"""

from collections.abc import Callable

from streams.dialects.common import BadLine, Decoded, Source
from streams.dialects.ga4 import decode_ga4
from streams.dialects.metarank import decode_metarank
from streams.dialects.segment import decode_segment
from streams.topics import Dialect

__all__ = ["DECODERS", "BadLine", "Source"]

DECODERS: dict[Dialect, Callable[[Source], Decoded]] = {
    "ga4": decode_ga4,
    "segment": decode_segment,
    "metarank": decode_metarank,
}
