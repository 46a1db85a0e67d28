"""What a request carries: events, and of each whether it is taken."""

import json
from dataclasses import dataclass
from http import HTTPStatus

from services.collector.as_stated import require_as_stated
from services.collector.spool import Spooled
from services.data.event_input import event_of, kind_named, reason_of
from services.metrics.collector import UNKNOWN_KIND
from services.web.http import ProblemError
from streams.events import MODELS, Event
from streams.producer import MAX_RECORD_BYTES

BATCH_FIELD = "events"
# A record has headers beside key and value, and topics take little more than 1 MiB by default.
MAX_EVENT_BYTES = MAX_RECORD_BYTES - 1_024


@dataclass(frozen=True, slots=True)
class Examined:
    """One event of a request.

    Attributes:
        pointer: Where in the body it is.
        kind: Its kind, `unknown` where it does not say one that we know.
        event_id: Its id, its own or made up; None when it is no event.
        spooled: What goes to Kafka; None when it is no event.
        reason: Why it is none.
    """

    pointer: str
    kind: str
    event_id: str | None = None
    spooled: Spooled | None = None
    reason: str | None = None


def examine(body: bytes, *, max_events: int) -> list[Examined]:
    """Takes a request apart, in order.

    Args:
        body: One event, or ``{"events": [...]}``.
        max_events: Most events of one request.

    Raises:
        ProblemError: The request as a whole is none.
    """
    parsed = _parsed(body)
    if not isinstance(parsed, dict):
        raise _unprocessable(f'the body must be one event, or {{"events": [...]}} for several, got {_named(parsed)}')
    if BATCH_FIELD not in parsed:
        return [_examined(parsed, "body")]
    return [_examined(fields, f"body/events/{index}") for index, fields in enumerate(_batch(parsed, max_events))]


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"the body must be JSON: {reason_of(error)}") from None


def _batch(parsed: dict[str, object], max_events: int) -> list[object]:
    events = parsed[BATCH_FIELD]
    if len(parsed) > 1:
        raise _unprocessable("a batch must have `events` only; put everything else into each event")
    if not isinstance(events, list) or not events:
        raise _unprocessable(f"`events` must be a list of at least 1 event, got {_named(events)}")
    if len(events) > max_events:
        raise _unprocessable(f"`events` must have at most {max_events} events, got {len(events)}; send several batches")
    return events


def _examined(fields: object, pointer: str) -> Examined:
    kind = _kind(fields)
    try:
        event = event_of(fields)
        require_as_stated(fields, event)
    except (ValueError, RecursionError) as error:
        return Examined(pointer, kind, reason=reason_of(error))
    spooled = _spooled(event)
    if spooled.size_bytes > MAX_EVENT_BYTES:
        reason = f"an event must have at most {MAX_EVENT_BYTES} bytes, got {spooled.size_bytes}; shorten its texts"
        return Examined(pointer, kind, reason=reason)
    return Examined(pointer, kind, event_id=event.event_id, spooled=spooled)


def _spooled(event: Event) -> Spooled:
    return Spooled(event.KIND, event.key().encode(), event.model_dump_json(exclude_none=True).encode())


def _kind(fields: object) -> str:
    named = kind_named(fields) if isinstance(fields, dict) else None
    return named if isinstance(named, str) and named in MODELS else UNKNOWN_KIND


def _named(value: object) -> str:
    return "an empty list" if value == [] else type(value).__name__


def _unprocessable(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
