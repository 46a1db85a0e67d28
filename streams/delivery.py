"""The outcome of publishing one event."""

from dataclasses import dataclass

from streams.events import Event


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one record: its place in the log, or the error that kept it out."""

    event: Event | None  # None for raw records
    topic: str
    partition: int | None
    offset: int | None
    timestamp_ms: int | None
    error: Exception | None
