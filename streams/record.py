"""A record of the log as it was read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log, undecoded."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
