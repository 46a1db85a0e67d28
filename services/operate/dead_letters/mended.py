"""Corrected events: a file with the event to send in place of each refused record, by letter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.data.event_validation import describe_error, validate_event
from services.operate.dead_letters.errors import LetterError
from streams.dead_letters import DeadLetter
from streams.events import Event
from streams.topics import Topics

FAULTS_SHOWN = 5


def letters_named(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of lines ``{"letter": "topic/partition/offset", "event": {...}}``.

    Returns:
        The fields of each event, by the key of its letter.

    Raises:
        LetterError: the file cannot be read, a line has another form, or a letter is named twice.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise LetterError(f"{path} cannot be read: {error.strerror or error}") from error
    named: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            key, fields = _parse_line(line, f"{path} line {number}")
            if key in named:
                raise LetterError(
                    f"{path} line {number}: letter {key!r} must be named once, it was before; leave one out"
                )
            named[key] = fields
    return named


def mended(named: Mapping[str, dict[str, Any]], letters: Mapping[str, DeadLetter], topics: Topics) -> dict[str, Event]:
    """Validate all corrected events before any is sent.

    The kind of an event is its `type`, or else that of the topic on which it was refused. Without `event_id` it gets
    its letter's key, so that it counts once however often it is sent; without `ts` the time of the refusal.

    Args:
        named: the fields of each event, by the key of its letter.
        letters: the existing letters by key.
        topics: the topics with the kinds of events that they carry.

    Raises:
        LetterError: a letter does not exist, or an event breaks a rule.
    """
    events: dict[str, Event] = {}
    faults: list[str] = []
    for key, fields in named.items():
        letter = letters.get(key)
        if letter is None:
            faults.append(f"{key}: there is no such dead letter")
            continue
        try:
            defaults = {"event_id": key, "ts": letter.first_seen_ts}
            events[key] = validate_event(defaults | fields, kind=topics.kind_of(letter.topic))
        except (ValueError, RecursionError) as error:
            faults.append(f"{key}: {describe_error(error)}")
    if faults:
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise LetterError(f"nothing was sent: {'; '.join(faults[:FAULTS_SHOWN])}{more}")
    return events


def _parse_line(line: bytes, where: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LetterError(f"{where}: {describe_error(error)}") from None
    if not isinstance(entry, dict) or entry.keys() != {"letter", "event"}:
        raise LetterError(f'{where}: must be {{"letter": "topic/partition/offset", "event": {{...}}}} and nothing else')
    if not isinstance(entry["letter"], str) or not isinstance(entry["event"], dict):
        raise LetterError(f"{where}: `letter` must be a text and `event` an object")
    return entry["letter"], entry["event"]
