"""The outcome of publishing one event."""

from dataclasses import dataclass

from streams.events import Event


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one record: where it is, or why it is not there."""

    event: Event | None  # None for raw records
    topic: str
    partition: int | None
    offset: int | None
    timestamp_ms: int | None
    error: Exception | None
