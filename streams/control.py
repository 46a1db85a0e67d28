"""The control topic: what is to be forgotten, what does not count, and which secret is in use. Compacted.

Its readers follow it in log order.

| key | value |
|---|---|
| `forget/<pseudonym>` | `{"event_id", "ts"}`: forget this user now |
| `quarantine/user/<pseudonym>` | `{"event_id", "ts", "reason", "count", "limit"}`; no value: released |
| `quarantine/item/<item id>` | the same |
| `guard/<scenario>` | `{"event_id", "ts", "caps", "others"}`: what the guard leaves out or weighs down at present |
| `secret` | `{"event_id", "ts", "fingerprint"}`: of the deployment's `privacy.secret`; no value: none is agreed on |
"""

import uuid
from dataclasses import dataclass

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from streams.events import EpochMs, Id
from streams.record import Record

log = structlog.get_logger(__name__)

FORGET, QUARANTINE, GUARD, SECRET = "forget/", "quarantine/", "guard/", "secret"
MAX_REPORTED = 200  # users and items in one report, the most first


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    event_id: Id
    ts: EpochMs


class Quarantine(_Command):
    """Why a user or an item does not count for now.

    Attributes:
        ts: when, epoch milliseconds.
        reason: which limit was passed.
        count: by how many events.
        limit: and what it is.
    """

    ts: int  # of an event that was accepted; a checkpoint may hold one that would be refused by now
    reason: str
    count: float
    limit: float


class Capped(BaseModel):
    """A user or an item of which the guard leaves out or weighs down events.

    Attributes:
        key: `user/<pseudonym>` or `item/<item id>`.
        rule: the rule that applied last.
        hour_ms: beginning of the hour of event time that is counted, epoch milliseconds.
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
    """What the guard of a scenario's updater leaves out or weighs down at present.

    Attributes:
        scenario: whose updater.
        caps: the users and items, the most first.
        others: how many more there are.
    """

    scenario: str = ""
    caps: tuple[Capped, ...]
    others: int = 0


class Secret(_Command):
    """Which secret the deployment hides user ids with.

    Attributes:
        fingerprint: of `privacy.secret`; it tells one secret from another.
    """

    fingerprint: str


@dataclass(frozen=True, slots=True)
class SecretReset:
    """No secret is agreed on any more; the next updater that starts publishes its own."""


@dataclass(frozen=True, slots=True)
class Forget:
    """A user is to be forgotten, by pseudonym.

    Attributes:
        user: who.
        ts_ms: when the log heard of it, epoch milliseconds; what the user did before is to leave no trace.
    """

    user: str
    ts_ms: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A user or an item is in quarantine: `user/<pseudonym>` or `item/<item id>`."""

    key: str
    why: Quarantine


@dataclass(frozen=True, slots=True)
class Released:
    """A user or an item is released from quarantine."""

    key: str


Command = Forget | Quarantined | Released | GuardReport | Secret | SecretReset


def parse_control(record: Record) -> Command | None:
    """Read a record of the control topic; one that is none of these is logged and passed over."""
    try:
        key = (record.key or b"").decode()
        if key.startswith(QUARANTINE) and record.value is None:
            return Released(key.removeprefix(QUARANTINE))
        if key.startswith(QUARANTINE) and record.value is not None:
            return Quarantined(key.removeprefix(QUARANTINE), Quarantine.model_validate_json(record.value))
        if key.startswith(FORGET) and record.value is not None:
            _Command.model_validate_json(record.value)
            return Forget(key.removeprefix(FORGET), record.timestamp_ms)
        if key.startswith(GUARD) and record.value is not None:
            report = GuardReport.model_validate_json(record.value)
            return report.model_copy(update={"scenario": key.removeprefix(GUARD)})
        if key == SECRET:
            return SecretReset() if record.value is None else Secret.model_validate_json(record.value)
    except (UnicodeDecodeError, ValidationError):
        pass  # said below, without the record's text: it may hold what nobody should read
    log.warning("control_record_refused", partition=record.partition, offset=record.offset)
    return None


def forget_record(user: str, *, ts_ms: int) -> tuple[bytes, bytes]:
    """Key and value of a record that has a user forgotten."""
    return f"{FORGET}{user}".encode(), _Command(event_id=str(uuid.uuid4()), ts=ts_ms).model_dump_json().encode()


def quarantine_record(key: str, why: Quarantine) -> tuple[bytes, bytes]:
    """Key and value of a record that tells of a quarantine."""
    return f"{QUARANTINE}{key}".encode(), why.model_dump_json().encode()


def release_key(key: str) -> bytes:
    """Key of the record that, without a value, releases from quarantine."""
    return f"{QUARANTINE}{key}".encode()


def guard_record(report: GuardReport) -> tuple[bytes, bytes]:
    """Key and value of a record that reports what the guard leaves out at present."""
    return f"{GUARD}{report.scenario}".encode(), report.model_dump_json(exclude={"scenario"}).encode()


def secret_record(fingerprint: str, *, ts_ms: int) -> tuple[bytes, bytes]:
    """Key and value of a record that says which secret the deployment uses."""
    secret = Secret(event_id=str(uuid.uuid4()), ts=ts_ms, fingerprint=fingerprint)
    return SECRET.encode(), secret.model_dump_json().encode()
