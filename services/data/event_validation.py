"""Validation of parsed JSON as an event, with a reason on one line if it is invalid."""

import json
import time
import uuid
from typing import Any

from services.faults import one_line
from streams.events import MODELS, Event

# Both name the kind of event; `kind` is used otherwise: the kind of an item is product, article, ad or answer.
KIND_FIELDS = ("type", "kind_of_event")
SHOWN_CHARS = 40


def validate_event(fields: object, *, kind: str | None = None) -> Event:
    """Validate one event; without `event_id` it gets a random one, without `ts` the present time.

    Args:
        fields: the parsed JSON.
        kind: the kind of event if the fields do not name one.

    Raises:
        ValueError: the event breaks a rule, which `describe_error` renders.
        RecursionError: the event is nested too deeply.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"an event must be a JSON object, got {type(fields).__name__}")
    model = MODELS[_require_kind(event_kind(fields, kind))]
    event = model.model_validate({"event_id": str(uuid.uuid4()), "ts": time.time_ns() // 1_000_000, **fields})
    _require_unicode(event)
    return event


def event_kind(fields: dict[str, Any], kind: str | None = None) -> object:
    """Return the kind of event that the fields name, whether or not it exists.

    Args:
        fields: the fields of an event.
        kind: the kind to return if the fields do not name one.
    """
    return next((fields[field] for field in KIND_FIELDS if field in fields), kind)


def describe_error(error: Exception) -> str:
    """Return on one line why an event is invalid.

    Args:
        error: the error that parsing or `validate_event` raised.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error, with_values=True)


def _require_unicode(event: Event) -> None:
    """Refuse half a surrogate pair, which JSON can express, pydantic accepts and no consumer can read."""
    for name, value in event:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"`{name}`: must be Unicode text, got half a surrogate pair at {error.start}"
                ) from None


def _require_kind(named: object) -> str:
    kinds = ", ".join(MODELS)
    if named is None:
        raise ValueError(f"an event must name its `type`, one of {kinds}")
    if not isinstance(named, str) or named not in MODELS:
        shown = repr(named[:SHOWN_CHARS]) if isinstance(named, str) else type(named).__name__
        raise ValueError(f"`type` must be one of {kinds}, got {shown}")
    return named
