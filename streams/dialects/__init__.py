"""Events as others write them, read as ours: GA4 e-commerce, Segment or RudderStack, Metarank.

A decoder takes the bytes of a record and the time at which the log took it, and gives events of ours: several where
one of theirs says several things, none where it says nothing to us. What it cannot read it refuses with pydantic's
`ValidationError`. The events are built through our own models, so that every rule of ours holds for them too. The
shapes read here are those of docs/events.md.
"""

from collections.abc import Callable

from streams.dialects.ga4 import decode_ga4
from streams.dialects.metarank import decode_metarank
from streams.dialects.segment import decode_segment
from streams.events import Event
from streams.topics import Dialect

__all__ = ["DECODERS"]

DECODERS: dict[Dialect, Callable[[bytes, int], list[Event]]] = {
    "ga4": decode_ga4,
    "segment": decode_segment,
    "metarank": decode_metarank,
}
