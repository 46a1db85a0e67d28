"""Decoding of records to events, removals of items, or dead letters with a reason."""

import time
from base64 import b64encode
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from streams.dead_letters import DeadLetter, Reason
from streams.dialects import DECODERS, InvalidLine, SourceRecord
from streams.events import MODELS, Event, Item
from streams.record import Record
from streams.topics import Topics
from streams.validation_errors import describe_errors

__all__ = ["MAX_EVENT_BYTES", "ItemRemoved", "Reason", "decode", "reject"]

MAX_EVENT_BYTES = 1024 * 1024
MAX_ERROR_CHARS = 500
# The validators themselves: `model_validate_json` would add a sixth to the time of a click.
_READERS = {kind: TypeAdapter(model).validator.validate_json for kind, model in MODELS.items()}


@dataclass(frozen=True, slots=True)
class ItemRemoved:
    """The removal of an item from the catalogue: a record with its key and no value.

    Attributes:
        item_id: the item that was removed.
        ts: the time of the record, epoch milliseconds.
    """

    item_id: str
    ts: int


def decode(
    record: Record, topics: Topics, *, max_event_bytes: int = MAX_EVENT_BYTES
) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    """Decode one record; a record that cannot be decoded becomes a dead letter, never an exception.

    A record in Headwater's format is one event. A record in another dialect can yield several events, or none if it
    contains no usable event. If only some of its lines can be decoded, each of the others is a dead letter in the list.

    Args:
        record: a record of one of the event topics.
        topics: the names of the topics.
        max_event_bytes: the size beyond which a value is rejected unread.
    """
    kind, value = topics.kind_of(record.topic), record.value
    if kind is None and record.topic not in topics.dialects:
        return reject(record, Reason.UNKNOWN_TOPIC, f"topic {record.topic!r} carries no events")
    if value is None:
        return _removal(record, kind)
    if len(value) > max_event_bytes:
        problem = f"an event must have at most {max_event_bytes} bytes, got {len(value)}"
        return reject(record, Reason.OVERSIZED, problem)
    try:
        if kind is None:
            return _translate(record, value, topics)
        event: Event = _READERS[kind](value)
    except ValidationError as error:
        return reject(record, _reason(error), describe_errors(error))
    if record.key != event.key().encode():
        field = "item_id" if kind == Item.KIND else "user_id"
        problem = f"the key of the record must be its {field}, got {'none' if record.key is None else 'another'}"
        return reject(record, Reason.WRONG_KEY, problem)
    return [event]


def _translate(record: Record, value: bytes, topics: Topics) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    place = record.topic, record.partition, record.offset
    decoded = DECODERS[topics.dialects[record.topic]](SourceRecord(value, record.timestamp_ms, place))
    invalid = [line for line in decoded if isinstance(line, InvalidLine)]
    if invalid and len(invalid) == len(decoded):
        return reject(record, Reason.INVALID_SCHEMA, "; ".join(dict.fromkeys(line.problem for line in invalid)))
    return [_reject_line(record, event) if isinstance(event, InvalidLine) else event for event in decoded]


def _reject_line(record: Record, line: InvalidLine) -> DeadLetter:
    """Return the dead letter of a line; the payload is an event of our own, to be mended and replayed."""
    letter = reject(replace(record, value=line.payload()), Reason.INVALID_SCHEMA, line.problem)
    return letter.model_copy(update={"line": line.where})


def _removal(record: Record, kind: str | None) -> list[Event | ItemRemoved | DeadLetter] | DeadLetter:
    if kind != Item.KIND:
        return reject(
            record, Reason.MALFORMED_JSON, "a record without a value is not an event; only items can be removed"
        )
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
    """Return the dead letter of a record.

    Args:
        record: the record to reject.
        reason: the class of the error.
        problem: the rule, the value and the remedy; truncated if it is long.
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
