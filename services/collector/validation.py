"""Validation of a request's events, one by one."""

import json
from dataclasses import dataclass
from http import HTTPStatus

from services.collector.spool import SpoolRecord
from services.collector.strict_types import require_json_types
from services.data.event_validation import describe_error, event_kind, validate_event
from services.metrics.collector import UNKNOWN_KIND
from services.web.http import ProblemError
from streams.events import MODELS, Event
from streams.producer import MAX_RECORD_BYTES

BATCH_FIELD = "events"
# A record has headers besides key and value, and topics accept little more than 1 MiB by default.
MAX_EVENT_BYTES = MAX_RECORD_BYTES - 1_024


@dataclass(frozen=True, slots=True)
class ValidatedEvent:
    """The result for one event of a request.

    Attributes:
        pointer: its place in the body.
        kind: its kind; `unknown` if it names none that exists.
        event_id: its own or its generated id; None if it is invalid.
        record: the record for Kafka; None if it is invalid.
        reason: the rule that it breaks; None if it is valid.
    """

    pointer: str
    kind: str
    event_id: str | None = None
    record: SpoolRecord | None = None
    reason: str | None = None


def validate_body(body: bytes, *, max_events: int) -> list[ValidatedEvent]:
    """Validate the events of a request, in order.

    Args:
        body: one event, or ``{"events": [...]}``.
        max_events: the most events of one request.

    Raises:
        ProblemError: the request as a whole is invalid.
    """
    parsed = _parse(body)
    if not isinstance(parsed, dict):
        raise _unprocessable(
            f'the body must be one event, or {{"events": [...]}} for several, got {_type_name(parsed)}'
        )
    if BATCH_FIELD not in parsed:
        return [_validate(parsed, "body")]
    return [_validate(fields, f"body/events/{index}") for index, fields in enumerate(_batch(parsed, max_events))]


def _parse(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"the body must be JSON: {describe_error(error)}") from None


def _batch(parsed: dict[str, object], max_events: int) -> list[object]:
    events = parsed[BATCH_FIELD]
    if len(parsed) > 1:
        raise _unprocessable("a batch must have `events` only; put everything else into each event")
    if not isinstance(events, list) or not events:
        raise _unprocessable(f"`events` must be a list of at least 1 event, got {_type_name(events)}")
    if len(events) > max_events:
        raise _unprocessable(f"`events` must have at most {max_events} events, got {len(events)}; send several batches")
    return events


def _validate(fields: object, pointer: str) -> ValidatedEvent:
    kind = _kind(fields)
    try:
        event = validate_event(fields)
        require_json_types(fields, event)
    except (ValueError, RecursionError) as error:
        return ValidatedEvent(pointer, kind, reason=describe_error(error))
    record = _record(event)
    if record.size_bytes > MAX_EVENT_BYTES:
        reason = f"an event must have at most {MAX_EVENT_BYTES} bytes, got {record.size_bytes}; shorten its texts"
        return ValidatedEvent(pointer, kind, reason=reason)
    return ValidatedEvent(pointer, kind, event_id=event.event_id, record=record)


def _record(event: Event) -> SpoolRecord:
    return SpoolRecord(event.KIND, event.key().encode(), event.model_dump_json(exclude_none=True).encode())


def _kind(fields: object) -> str:
    kind = event_kind(fields) if isinstance(fields, dict) else None
    return kind if isinstance(kind, str) and kind in MODELS else UNKNOWN_KIND


def _type_name(value: object) -> str:
    return "an empty list" if value == [] else type(value).__name__


def _unprocessable(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
