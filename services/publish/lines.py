"""One JSON document a line becomes an event, or the reason why it is none."""

import json
from collections.abc import Iterable, Iterator

from services.event_input import event_of, kind_named, reason_of
from streams.events import Event


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
                yield number, reason_of(error)


def _event(line: bytes, kind: str | None) -> Event:
    fields = json.loads(line)
    if isinstance(fields, dict) and kind not in (None, named := kind_named(fields, kind)):
        raise ValueError(f"`type` must be {kind}, as --kind says, got {named!r}")
    return event_of(fields, kind=kind)
