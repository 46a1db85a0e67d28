"""From records to events: each record becomes events, the removal of an item, or a dead letter with its reason."""

import time
from base64 import b64encode
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from streams.dead_letters import DeadLetter, Reason
from streams.dialects import DECODERS, BadLine, Source
from streams.events import MODELS, Event, Item
from streams.record import Record
from streams.topics import Topics
from streams.validation_errors import describe_errors

__all__ = ["MAX_EVENT_BYTES", "ItemRemoved", "Reason", "decode", "reject"]

MAX_EVENT_BYTES = 1024 * 1024
MAX_ERROR_CHARS = 500
# Straight to the validators: `model_validate_json` takes a sixth of the time of a click for itself.
_READERS = {kind: TypeAdapter(model).validator.validate_json for kind, model in MODELS.items()}


@dataclass(frozen=True, slots=True)
class ItemRemoved:
    """An item left the catalogue: a record with its key and no value.

    Attributes:
        item_id: which item.
        ts: the record's time, epoch milliseconds.
    """

    item_id: str
    ts: int


def decode(
    record: Record, topics: Topics, *, max_event_bytes: int = MAX_EVENT_BYTES
) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    """Reads one record; what cannot be read becomes a dead letter, never an exception.

    A record of ours is one event. A record in another dialect can be several, or none where it says nothing to us. If
    only some of its lines can be read, each of the others is a dead letter in the list.

    Args:
        record: From one of the event topics.
        topics: Which topic carries what.
        max_event_bytes: A value larger than this is refused unread.
    """
    kind, value = topics.kind_of(record.topic), record.value
    if kind is None and record.topic not in topics.dialects:
        return reject(record, Reason.UNKNOWN_TOPIC, f"topic {record.topic!r} carries no events")
    if value is None:
        return _removed(record, kind)
    if len(value) > max_event_bytes:
        problem = f"an event must have at most {max_event_bytes} bytes, got {len(value)}"
        return reject(record, Reason.OVERSIZED, problem)
    try:
        if kind is None:
            return _translated(record, value, topics)
        event: Event = _READERS[kind](value)
    except ValidationError as error:
        return reject(record, _reason(error), describe_errors(error))
    if record.key != event.key().encode():
        field = "item_id" if kind == Item.KIND else "user_id"
        problem = f"the key of the record must be its {field}, got {'none' if record.key is None else 'another'}"
        return reject(record, Reason.WRONG_KEY, problem)
    return [event]


def _translated(record: Record, value: bytes, topics: Topics) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    place = record.topic, record.partition, record.offset
    found = DECODERS[topics.dialects[record.topic]](Source(value, record.timestamp_ms, place))
    bad = [one for one in found if isinstance(one, BadLine)]
    if bad and len(bad) == len(found):
        return reject(record, Reason.INVALID_SCHEMA, "; ".join(dict.fromkeys(one.problem for one in bad)))
    return [_refused_line(record, one) if isinstance(one, BadLine) else one for one in found]


def _refused_line(record: Record, line: BadLine) -> DeadLetter:
    """The dead letter of a line; its payload is the line, as an event of ours: mended, it can be put back."""
    letter = reject(replace(record, value=line.payload()), Reason.INVALID_SCHEMA, line.problem)
    return letter.model_copy(update={"line": line.where})


def _removed(record: Record, kind: str | None) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    if kind != Item.KIND:
        return reject(record, Reason.MALFORMED_JSON, "a record without a value is not an event; only items can be removed")
    try:
        item_id = (record.key or b"").decode()
    except UnicodeDecodeError as error:
        return reject(record, Reason.WRONG_KEY, f"the key of a removal must be an item_id: {error}")
    if not item_id:
        return reject(record, Reason.WRONG_KEY, "the key of a removal must be an item_id, got none")
    return [ItemRemoved(item_id, record.timestamp_ms)]


def _reason(error: ValidationError) -> Reason:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    if any(detail["type"] == "json_invalid" for detail in details):
        return Reason.MALFORMED_JSON
    if any(detail["loc"] == ("schema_version",) for detail in details):
        return Reason.UNKNOWN_VERSION
    return Reason.INVALID_SCHEMA


def reject(record: Record, reason: Reason, problem: str) -> DeadLetter:
    """The dead letter of a record.

    Args:
        record: what is refused.
        reason: the rule it breaks.
        problem: that rule, the value and the remedy; cut short where it is long.
    """
    return DeadLetter(
        reason=reason,
        error=problem[:MAX_ERROR_CHARS],
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=None if record.key is None else b64encode(record.key).decode(),
        payload=None if record.value is None else b64encode(record.value).decode(),
        payload_bytes=len(record.value or b""),
        first_seen_ts=time.time_ns() // 1_000_000,
    )
