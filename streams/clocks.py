"""Times of producers and brokers, bounded by the reader's own clock.

The wrong clock of one producer must not affect others: a time further ahead of the reader's clock than an allowance is
replaced, and an event dated more than a day ahead is rejected. The replacement is the newest time, among the records
read together, that is not ahead: while a backlog is read, the log is at that time. If most records are ahead, the
reader's clock is the wrong one, and its own time replaces theirs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from streams.dead_letters import DeadLetter, Reason
from streams.decode import ItemRemoved, decode, reject
from streams.events import Event, Item
from streams.record import Record
from streams.topics import Topics

DAY_MS = 86_400_000


class ClockSettings(BaseModel):
    """The allowance for clocks that are ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowance_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="how far an event or a record may be ahead of the reader's clock; a time further ahead is clamped",
    )


@dataclass(frozen=True, slots=True)
class ReaderClock:
    """The reader's clock at one moment.

    Attributes:
        now_ms: the time that it shows, epoch milliseconds.
        allowance_ms: how far ahead of it a time may be.
        log_ms: the replacement of a time that is too far ahead, at most `now_ms`.
    """

    now_ms: int
    allowance_ms: int
    log_ms: int

    @classmethod
    def from_records(
        cls, records: Sequence[Record], settings: ClockSettings, *, now_ms: int | None = None
    ) -> "ReaderClock":
        """Return the clock that bounds the times of some records.

        Args:
            records: the records that were read together.
            settings: the allowance for clocks that are ahead.
            now_ms: the time of the reader's clock, epoch milliseconds; by default that of this machine.
        """
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        past = [record.timestamp_ms for record in records if 0 <= record.timestamp_ms <= now_ms]
        log_ms = max(past) if past and 2 * len(past) >= len(records) else now_ms
        return cls(now_ms, int(settings.allowance_seconds * 1000), log_ms)

    @property
    def latest_ms(self) -> int:
        """The latest time that is accepted unchanged."""
        return self.now_ms + self.allowance_ms

    def bound_time(self, time_ms: int) -> int:
        """Return a time, replaced by `log_ms` if it is further ahead than the allowance."""
        return time_ms if time_ms <= self.latest_ms else self.log_ms

    def publish_ts_ms(self, record: Record) -> int:
        """Return the publication time of a record, at most `now_ms`, for what it shares with others, as a watermark."""
        return min(self.bound_record(record).timestamp_ms, self.now_ms)

    def bound_record(self, record: Record) -> Record:
        """Return a record with its time bounded; a record without a time (-1) gets `log_ms`."""
        if 0 <= record.timestamp_ms <= self.latest_ms:
            return record
        return replace(record, timestamp_ms=self.log_ms)


class BoundedRecord(NamedTuple):
    """A decoded record whose times are bounded.

    Attributes:
        record: the record with its time bounded.
        decoded: the result of `decode` with event times bounded.
        clamped: whether a time was replaced.
    """

    record: Record
    decoded: list[Event | ItemRemoved | DeadLetter] | DeadLetter
    clamped: bool


def decode_bounded(record: Record, topics: Topics, clock: ReaderClock) -> BoundedRecord:
    """Decode a record and bound its time and those of its events.

    The time of an item is at most that of its record: it decides which of two versions is newer, and a version must not
    be dated after one that was published later.

    Args:
        record: a record of one of the event topics.
        topics: the names of the topics.
        clock: the reader's clock.
    """
    bounded = clock.bound_record(record)
    decoded = decode(bounded, topics)
    if isinstance(decoded, DeadLetter):
        return BoundedRecord(bounded, decoded, False)
    clamped = record.timestamp_ms > clock.latest_ms
    for index, event in enumerate(decoded):
        if isinstance(event, DeadLetter):
            continue
        if event.ts > clock.now_ms + DAY_MS:
            return BoundedRecord(bounded, reject(record, Reason.FROM_THE_FUTURE, _too_far(event.ts, clock)), False)
        ts = clock.bound_time(event.ts)
        clamped |= ts != event.ts
        if isinstance(event, Item):
            ts = min(ts, bounded.timestamp_ms)
        if ts != event.ts and not isinstance(event, ItemRemoved):
            decoded[index] = event.model_copy(update={"ts": ts})
    return BoundedRecord(bounded, decoded, clamped)


def _too_far(ts: int, clock: ReaderClock) -> str:
    return (
        f"`ts` must be at most a day ahead of the reader's clock ({_moment(clock.now_ms)}), got {ts} ({_moment(ts)}); "
        "correct the clock that set it, or the reader's"
    )


def _moment(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
