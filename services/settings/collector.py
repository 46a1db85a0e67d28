"""Settings of the collector."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.settings.origins import Origins

# Bytes that defaults, a generated id and the key may add to an event.
ADDED_BYTES = 1_024


class CollectorSettings(BaseModel):
    """Address and spool of the HTTP collector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8085, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    spool_path: Path = Field(
        default=Path(".headwater/collector-spool.db"),
        description="file of accepted events that wait for Kafka; on a persistent disk",
    )
    spool_max_events: int = Field(
        default=1_000_000, ge=1, description="events that may wait; beyond it, requests are answered 429"
    )
    spool_max_bytes: int = Field(
        default=268_435_456,
        ge=1,
        description="bytes of events that may wait; beyond it, requests get 429; the file may be a third larger",
    )
    max_batch_events: int = Field(default=1_000, ge=1, description="largest number of events in one request")
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1_024,
        description="largest request body, as sent or decompressed; larger ones are answered 413",
    )
    cors_origins: Origins = ()
    flush_grace_seconds: float = Field(
        default=5.0, ge=0, description="time for sending waiting events at shutdown; the rest waits for the next start"
    )

    @model_validator(mode="after")
    def _spool_takes_a_request(self) -> Self:
        """Check that an empty spool can take any request: one that it cannot take would be retried for ever."""
        needed_bytes = self.max_body_bytes + ADDED_BYTES * self.max_batch_events
        if self.spool_max_events < self.max_batch_events:
            raise ValueError(
                f"`spool_max_events` must be at least `max_batch_events`, {self.max_batch_events}, "
                f"got {self.spool_max_events}; raise it, or lower the other"
            )
        if self.spool_max_bytes < needed_bytes:
            raise ValueError(
                f"`spool_max_bytes` must be at least `max_body_bytes` + {ADDED_BYTES} * `max_batch_events`, "
                f"{needed_bytes}, got {self.spool_max_bytes}; raise it, or lower the others"
            )
        return self
