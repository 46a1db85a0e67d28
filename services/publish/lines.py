"""One JSON document a line becomes an event, or the reason why it is none."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from services.faults import one_line
from streams.events import MODELS, Event

# Either names the kind of event; `kind` is taken: an item's own is product, article, ad or answer.
KIND_FIELDS = ("type", "kind_of_event")


def read_lines(lines: Iterable[bytes], *, kind: str | None = None) -> Iterator[tuple[int, Event | str]]:
    """Reads events, one a line; empty lines are passed over.

    A line without `event_id` gets a random one, a line without `ts` the present time.

    Args:
        lines: The lines as they came, each with or without its line end.
        kind: The kind of every event; None leaves it to each line's ``type`` or ``kind_of_event``.

    Yields:
        The line's number, from 1, and its event or the reason why it is none.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, _event(line, kind)
            except (ValueError, RecursionError) as error:
                yield number, _reason(error)


def _event(line: bytes, kind: str | None) -> Event:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"a line must be a JSON object, got {type(fields).__name__}")
    model = MODELS[_kind_of(fields, kind)]
    return model.model_validate({"event_id": str(uuid.uuid4()), "ts": time.time_ns() // 1_000_000, **fields})


def _kind_of(fields: dict[str, Any], kind: str | None) -> str:
    known = ", ".join(MODELS)
    named = next((fields[field] for field in KIND_FIELDS if field in fields), kind)
    if named is None:
        raise ValueError(f"a line must say its `type`, one of {known}; or give --kind for all lines")
    if not isinstance(named, str) or named not in MODELS:
        raise ValueError(f"`type` must be one of {known}, got {named!r}")
    if kind not in (None, named):
        raise ValueError(f"`type` must be {kind}, as --kind says, got {named!r}")
    return named


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
