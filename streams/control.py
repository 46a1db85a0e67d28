"""Records of the control topic: users to forget, quarantines, guard reports, and the secret in use.

The topic is compacted, and its readers follow it in log order.

| key | value |
|---|---|
| `forget/<pseudonym>` | `{"event_id", "ts", "ends", "topic_ids"}`: forget this user, and what lies below these ends |
| `quarantine/user/<pseudonym>` | `{"event_id", "ts", "reason", "count", "limit"}`; without a value: released |
| `quarantine/item/<item id>` | as for a user |
| `guard/<scenario>` | `{"event_id", "ts", "caps", "others"}`: the users and items that the guard caps at present |
| `secret` | `{"event_id", "ts", "fingerprint"}`: of the deployment's `privacy.secret`; without a value: reset |
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import structlog
from pydantic import BaseModel, ConfigDict

from streams.events import EpochMs, Id
from streams.offsets import Offsets, TopicPartition, decode_offsets, encode_offsets
from streams.record import Record

log = structlog.get_logger(__name__)

FORGET, QUARANTINE, GUARD, SECRET = "forget/", "quarantine/", "guard/", "secret"
MAX_REPORTED = 200  # users and items in one report, the largest first


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    event_id: Id
    ts: EpochMs


class _Forget(_Command):
    ends: dict[str, int] = {}  # missing in commands of earlier releases
    topic_ids: dict[str, str] = {}


class Quarantine(_Command):
    """The reason why a user or an item does not count for now.

    Attributes:
        ts: the time of the event that caused it, epoch milliseconds.
        reason: the rule whose limit was exceeded.
        count: the number of events that were counted.
        limit: the limit of that number.
    """

    ts: int  # not `EpochMs`: checkpoints may contain times that would be rejected today
    reason: str
    count: float
    limit: float


class Capped(BaseModel):
    """A user or an item whose events the guard leaves out or down-weights.

    Attributes:
        key: `user/<pseudonym>` or `item/<item id>`.
        rule: the rule that applied last.
        hour_ms: the start of the hour of event time that is counted, epoch milliseconds.
        left_out: events and lists of that hour that do not count.
        weighed_down: events and lists of that hour that count less.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    rule: str
    hour_ms: int
    left_out: int
    weighed_down: int


class GuardReport(_Command):
    """The users and items that the guard of a scenario's updater caps at present.

    Attributes:
        scenario: the scenario of the updater.
        caps: the users and items, the largest first.
        others: the number of further ones that are not listed.
    """

    scenario: str = ""
    caps: tuple[Capped, ...]
    others: int = 0


class Secret(_Command):
    """The secret with which the deployment makes pseudonyms.

    Attributes:
        fingerprint: the fingerprint of `privacy.secret`, which differs between secrets.
    """

    fingerprint: str


@dataclass(frozen=True, slots=True)
class SecretReset:
    """A reset of the secret; the next updater that starts publishes its own."""


@dataclass(frozen=True, slots=True)
class Forget:
    """A request to forget a user.

    Attributes:
        user: the pseudonym of the user.
        ts_ms: the time of the record, epoch milliseconds; earlier events of the user are to leave no trace.
        ends: the end of each partition of the event topics when the command was given. Events below it are to leave no
            trace either, whatever a producer's clock said.
        topic_ids: the ids of the logs that the ends belong to.
    """

    user: str
    ts_ms: int
    ends: Offsets = field(default_factory=dict)
    topic_ids: Mapping[str, str] = field(default_factory=dict)

    def covers(self, record: Record, topic_ids: Mapping[str, str]) -> bool:
        """Return whether a record of the user was in the log before the command.

        Args:
            record: a record of an event topic.
            topic_ids: the ids of the logs that are read; a topic without an id is taken for the same log.
        """
        own, other = self.topic_ids.get(record.topic), topic_ids.get(record.topic)
        is_same_log = own is None or other is None or own == other
        return is_same_log and record.offset < self.ends.get((record.topic, record.partition), 0)

    def as_json(self) -> dict[str, Any]:
        """Return the command as JSON values, for a checkpoint."""
        ends = encode_offsets(self.ends)
        return {"user": self.user, "ts_ms": self.ts_ms, "ends": ends, "topic_ids": dict(self.topic_ids)}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Return the command that `as_json` encoded."""
        return cls(state["user"], state["ts_ms"], decode_offsets(state["ends"]), state["topic_ids"])


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A quarantine of a user or an item: `user/<pseudonym>` or `item/<item id>`."""

    key: str
    why: Quarantine


@dataclass(frozen=True, slots=True)
class Released:
    """A release of a user or an item from quarantine."""

    key: str


Command = Forget | Quarantined | Released | GuardReport | Secret | SecretReset


def parse_control(record: Record) -> Command | None:
    """Parse a record of the control topic; an unknown or invalid record is logged and yields None."""
    try:
        key = (record.key or b"").decode()
        if key.startswith(QUARANTINE) and record.value is None:
            return Released(key.removeprefix(QUARANTINE))
        if key.startswith(QUARANTINE) and record.value is not None:
            return Quarantined(key.removeprefix(QUARANTINE), Quarantine.model_validate_json(record.value))
        if key.startswith(FORGET) and record.value is not None:
            command = _Forget.model_validate_json(record.value)
            ends = decode_offsets(command.ends)
            return Forget(key.removeprefix(FORGET), record.timestamp_ms, ends, command.topic_ids)
        if key.startswith(GUARD) and record.value is not None:
            report = GuardReport.model_validate_json(record.value)
            return report.model_copy(update={"scenario": key.removeprefix(GUARD)})
        if key == SECRET:
            return SecretReset() if record.value is None else Secret.model_validate_json(record.value)
    except ValueError:  # pydantic's ValidationError and UnicodeDecodeError are among them
        pass  # logged below, without the content of the record: it may contain personal data
    log.warning("control_record_refused", partition=record.partition, offset=record.offset)
    return None


def forget_record(
    user: str,
    *,
    ts_ms: int,
    ends: Mapping[TopicPartition, int] | None = None,
    topic_ids: Mapping[str, str] | None = None,
) -> tuple[bytes, bytes]:
    """Return key and value of a record that requests to forget a user.

    Args:
        user: the pseudonym of the user.
        ts_ms: the present time, epoch milliseconds.
        ends: the present ends of the event topics' partitions.
        topic_ids: the ids of these topics.
    """
    command = _Forget(
        event_id=str(uuid.uuid4()), ts=ts_ms, ends=encode_offsets(ends or {}), topic_ids=dict(topic_ids or {})
    )
    return f"{FORGET}{user}".encode(), command.model_dump_json().encode()


def quarantine_record(key: str, why: Quarantine) -> tuple[bytes, bytes]:
    """Return key and value of a record that announces a quarantine."""
    return f"{QUARANTINE}{key}".encode(), why.model_dump_json().encode()


def release_key(key: str) -> bytes:
    """Return the key of the record that, without a value, releases a user or an item."""
    return f"{QUARANTINE}{key}".encode()


def guard_record(report: GuardReport) -> tuple[bytes, bytes]:
    """Return key and value of a record with a report of the guard."""
    return f"{GUARD}{report.scenario}".encode(), report.model_dump_json(exclude={"scenario"}).encode()


def secret_record(fingerprint: str, *, ts_ms: int) -> tuple[bytes, bytes]:
    """Return key and value of a record that announces the deployment's secret."""
    secret = Secret(event_id=str(uuid.uuid4()), ts=ts_ms, fingerprint=fingerprint)
    return SECRET.encode(), secret.model_dump_json().encode()
