"""Reading of events from a file: JSON documents, one per line or in an array, or the rows of a table."""

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from services.data.dataset import (
    DEFAULT_SCENARIO,
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    Row,
    event_of_row,
    has_time,
    item_of_row,
    row_time_ms,
)
from services.data.event_validation import describe_error, event_kind, validate_event
from services.data.files import READ_ERRORS, as_text, unreadable
from services.data.rows import JSON_BEGINS, looks_like_table, table_rows
from services.faults import one_line
from streams.events import MODELS, Event, Item

TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
COLUMNS = ITEM_COLUMNS | EVENT_COLUMNS | {"event_id", "scenario"}

_DECODER = json.JSONDecoder()
_BETWEEN_ELEMENTS, _BETWEEN_DOCUMENTS = re.compile(r"[\s,]*"), re.compile(r"\s*")

Result = tuple[int, Event | str]  # the line number from 1, and the event or the reason why it is invalid


def read_file(binary: IO[bytes], path: Path, *, kind: str | None = None) -> Iterator[Result]:
    """Read the events of a file in any of the formats.

    Args:
        binary: the file, opened for reading.
        path: the file's name in errors.
        kind: the kind of every event; None reads `type` of each document, or the column `event_type`.

    Raises:
        InputError: the file cannot be read, or lacks a required column.
    """
    try:
        with as_text(binary, path) as text:
            yield from _read_text(text, path, kind)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def _read_text(text: IO[str], path: Path, kind: str | None) -> Iterator[Result]:
    """Detect the format by the first line that is not empty, and read the file."""
    ahead = [text.readline()]
    while ahead[-1] and not ahead[-1].strip():
        ahead.append(text.readline())
    first, lines = ahead[-1], chain(ahead, text)
    named_table = path.name.lower().endswith(TABLE_SUFFIXES) and not first.lstrip().startswith(JSON_BEGINS)
    if named_table or looks_like_table(first, COLUMNS):
        yield from _rows(lines, path, kind)
    elif first.lstrip().startswith("[") or first.strip() == "{":
        yield from read_documents("".join(lines), kind=kind)
    else:
        yield from read_lines((line.encode("utf-8", "surrogateescape") for line in lines), kind=kind)


def read_lines(lines: Iterable[bytes], *, kind: str | None = None) -> Iterator[Result]:
    """Read events, one per line; empty lines are skipped.

    A line without `event_id` gets a random one, a line without `ts` the present time.

    Args:
        lines: the lines, each with or without its line end.
        kind: the kind of every event; None reads ``type`` or ``kind_of_event`` of each line.

    Yields:
        The line's number from 1, and its event or the reason why it is invalid.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, _event(json.loads(line), kind)
            except (ValueError, RecursionError) as error:
                yield number, describe_error(error)


def read_documents(text: str, *, kind: str | None = None) -> Iterator[Result]:
    """Read events from JSON arrays, and from JSON documents that take several lines each.

    Args:
        text: the content of the whole file.
        kind: the kind of every event; None reads it from each document.

    Yields:
        The line where each document begins, and its event or the reason why it is invalid. Text that is not JSON ends
        the iteration.
    """
    in_array, at, line = False, 0, 1
    while True:
        begin = _end_of(_BETWEEN_ELEMENTS if in_array else _BETWEEN_DOCUMENTS, text, at)
        line += text.count("\n", at, begin)
        if begin == len(text):
            if in_array:
                yield line, "not JSON: the array is not closed; the file may be cut short"
            return
        if text[begin] == ("]" if in_array else "["):  # several arrays may follow each other, one a line for example
            in_array, at = not in_array, begin + 1
            continue
        try:
            fields, at = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            yield line, f"{describe_error(error)}; the rest of the file cannot be read"
            return
        try:
            yield line, _event(fields, kind)
        except (ValueError, RecursionError) as error:
            yield line, describe_error(error)
        line += text.count("\n", begin, at)


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return where the match of a pattern ends; `at` if there is no match."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _rows(lines: Iterator[str], path: Path, kind: str | None) -> Iterator[Result]:
    required = ("item_id", "title") if kind == Item.KIND else ("item_id",) if kind else ("event_type", "item_id")
    instead = {"event_type": "name the kind of all rows with --kind instead"}
    for row in table_rows(lines, path, required=required, known=COLUMNS, instead=instead):
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            yield row.line, _event_of_row(row.cells, kind)
        except ValueError as error:
            yield row.line, one_line(error, with_values=True)


def _event_of_row(row: Row, kind: str | None) -> Event:
    row_kind = row.get("event_type") or kind
    if kind is not None and row_kind != kind:
        raise ValueError(f"`event_type` must be {kind}, as --kind says, got {row_kind!r}")
    if row_kind not in MODELS:
        raise ValueError(f"`event_type` must be one of {', '.join(MODELS)}, got {row_kind!r}")
    event_id = row.get("event_id") or str(uuid.uuid4())
    ts = row_time_ms(row) if has_time(row) else time.time_ns() // 1_000_000
    if row_kind == Item.KIND:
        return item_of_row(row, event_id=event_id, ts=ts)
    return event_of_row(row, row_kind, event_id=event_id, ts=ts, scenario=row.get("scenario") or DEFAULT_SCENARIO)


def _event(fields: object, kind: str | None) -> Event:
    if isinstance(fields, dict) and kind not in (None, named := event_kind(fields, kind)):
        raise ValueError(f"`type` must be {kind}, as --kind says, got {named!r}")
    return validate_event(fields, kind=kind)
