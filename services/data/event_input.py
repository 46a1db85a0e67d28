"""What anyone may send as an event, parsed from JSON, becomes an event or the reason why it is none."""

import json
import time
import uuid
from typing import Any

from services.faults import one_line
from streams.events import MODELS, Event

# Either names the kind of event; `kind` is taken: an item's own is product, article, ad or answer.
KIND_FIELDS = ("type", "kind_of_event")
SHOWN_CHARS = 40


def event_of(fields: object, *, kind: str | None = None) -> Event:
    """Validates one event; without `event_id` it gets a random one, without `ts` the present time.

    Args:
        fields: What was parsed.
        kind: The kind of event where the fields do not say it.

    Raises:
        ValueError: It breaks a rule; `reason_of` renders which.
        RecursionError: It is nested too deeply.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"an event must be a JSON object, got {type(fields).__name__}")
    model = MODELS[_known(kind_named(fields, kind))]
    event = model.model_validate({"event_id": str(uuid.uuid4()), "ts": time.time_ns() // 1_000_000, **fields})
    _require_unicode(event)
    return event


def kind_named(fields: dict[str, Any], kind: str | None = None) -> object:
    """What the fields say of their kind, known or not.

    Args:
        fields: An event's.
        kind: What it is where they say nothing.
    """
    return next((fields[field] for field in KIND_FIELDS if field in fields), kind)


def reason_of(error: Exception) -> str:
    """Says on one line why something is no event.

    Args:
        error: What parsing or `event_of` raised.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error, with_values=True)


def _require_unicode(event: Event) -> None:
    """JSON can spell half of a surrogate pair, which no consumer could read; pydantic lets it pass as free text."""
    for name, value in event:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"`{name}`: must be Unicode text, got half a surrogate pair at {error.start}"
                ) from None


def _known(named: object) -> str:
    known = ", ".join(MODELS)
    if named is None:
        raise ValueError(f"an event must say its `type`, one of {known}")
    if not isinstance(named, str) or named not in MODELS:
        shown = repr(named[:SHOWN_CHARS]) if isinstance(named, str) else type(named).__name__
        raise ValueError(f"`type` must be one of {known}, got {shown}")
    return named
