"""Reads a data set's CSV files, plain or gzipped, as the events that a shop would have published.

Columns of items: ``item_id, title`` and, where there, ``kind, description, tags, category, brand, price, first_seen``;
tags, split by ``|``, are put before the description. A column ``vectors.<name>`` holds vectors of that modality, each a
JSON list of numbers; all of a column have one length.
Columns of events: ``timestamp`` (ISO 8601), ``timestamp_ms`` or ``seq``; ``user_id, event_type, item_id`` and, where
there, ``session_id, request_id, position, quantity, price, shown_items``. Other columns are not looked at.

What the files leave open is settled the same way every time, so that two readings give the same events:

- Times without a zone are taken as UTC. Where there is only ``seq``, times are **invented**: one second apart from
  `INVENTED_EPOCH_MS`. They carry order and nothing else.
- An item without ``first_seen`` has the time `INVENTED_EPOCH_MS`.
- A row without a user is a guest, one per session: ``guest-<session_id>``, or per row where there is no session.
- ``event_id`` is ``<file stem>-<row>``, rows counted from 1 and rows passed over included. A second replay of the
  same file is therefore dropped as duplicates.
"""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from services.faults import one_line
from streams.events import Click, Event, Impression, Item, Purchase, unit_problem

INVENTED_EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z
DEFAULT_SCENARIO = "home"
_NUMBER = re.compile(r"\d+(\.\d+)?")
_VECTORS = "vectors."  # before a modality in the name of a column

Row = dict[str, str]


class DatasetError(ValueError):
    """A data-set file cannot be read; the message names file, row, rule and value."""


def read_items(path: Path) -> Iterator[Item]:
    """Reads a catalogue.

    Args:
        path: A ``.csv`` or ``.csv.gz`` file.

    Yields:
        One item a row, in file order.

    Raises:
        DatasetError: The file cannot be read, lacks a column, or a row is not a valid item.
    """
    stem, lengths = _stem(path), dict[str, int]()
    for number, row in _rows(path, required=("item_id", "title")):
        try:
            item = _item(row, f"{stem}-{number}")
            _require_lengths(item, lengths)
        except ValueError as error:
            raise _bad_row(path, number, error) from error
        yield item


def read_events(
    path: Path,
    *,
    max_events: int | None = None,
    scenario: str = DEFAULT_SCENARIO,
    skipped: Counter[str] | None = None,
) -> Iterator[Event]:
    """Reads purchases, clicks and impressions.

    Args:
        path: A ``.csv`` or ``.csv.gz`` file.
        max_events: Ends after that many events; rows passed over do not count.
        scenario: The scenario given to every event.
        skipped: Counts the rows passed over (returns, and other types that are no signal) by their type.

    Yields:
        One event a row, in file order.

    Raises:
        DatasetError: The file cannot be read, lacks a column, or a row is not a valid event.
    """
    stem, taken = _stem(path), 0
    for number, row in _rows(path, required=("user_id", "event_type", "item_id")):
        if taken == max_events:
            return
        build = _EVENT_BUILDERS.get(row["event_type"])
        if build is None:
            if skipped is not None:
                skipped[row["event_type"]] += 1
            continue
        try:
            event = build(row, _common(row, f"{stem}-{number}", scenario))
        except ValueError as error:
            raise _bad_row(path, number, error) from error
        taken += 1
        yield event


def _item(row: Row, event_id: str) -> Item:
    return Item.model_validate(
        {
            "event_id": event_id,
            "ts": _iso_ms(row["first_seen"]) if row.get("first_seen") else INVENTED_EPOCH_MS,
            "item_id": row["item_id"],
            "kind": row.get("kind") or "product",
            "title": row["title"],
            "description": ". ".join(part for part in (_tags(row), row.get("description", "")) if part),
            "category": row.get("category", ""),
            "brand": row.get("brand", ""),
            "price": row.get("price") or None,
            "vectors": {
                name.removeprefix(_VECTORS): json.loads(cell)
                for name, cell in row.items()
                if name and name.startswith(_VECTORS) and cell
            },
        }
    )


def _require_lengths(item: Item, lengths: dict[str, int]) -> None:
    """See that each vector has the length of the first of its name, and remember the lengths of new names."""
    for name, vector in item.vectors.items():
        if len(vector) != lengths.setdefault(name, len(vector)):
            raise ValueError(f"`vectors.{name}` must have {lengths[name]} numbers, as the first has, got {len(vector)}")


def _tags(row: Row) -> str:
    return ", ".join(tag for tag in row.get("tags", "").split("|") if tag)


def _common(row: Row, event_id: str, scenario: str) -> dict[str, Any]:
    """Gives the fields that every user event has."""
    session_id = row.get("session_id") or None
    return {
        "event_id": event_id,
        "ts": _ts_ms(row),
        "user_id": row["user_id"] or f"guest-{session_id or event_id}",
        "session_id": session_id,
        "scenario": scenario,
        "request_id": row.get("request_id") or None,
    }


def _click(row: Row, common: dict[str, Any]) -> Click:
    return Click.model_validate({**common, "item_id": row["item_id"], "position": row.get("position") or None})


def _purchase(row: Row, common: dict[str, Any]) -> Purchase:
    return Purchase.model_validate(
        {
            **common,
            "item_id": row["item_id"],
            "quantity": row.get("quantity") or 1,
            "price": row.get("price") or None,
        }
    )


def _impression(row: Row, common: dict[str, Any]) -> Impression:
    shown = [
        {"item_id": item_id, "position": position}
        for position, item_id in enumerate(row.get("shown_items", "").split())
    ]
    return Impression.model_validate(
        {**common, "request_id": common["request_id"] or common["event_id"], "items": shown}
    )


_EVENT_BUILDERS: dict[str, Callable[[Row, dict[str, Any]], Event]] = {
    Click.KIND: _click,
    Purchase.KIND: _purchase,
    Impression.KIND: _impression,
}


def _ts_ms(row: Row) -> int:
    """Takes the row's time, epoch milliseconds."""
    if timestamp := row.get("timestamp"):
        return _iso_ms(timestamp)
    if timestamp_ms := row.get("timestamp_ms"):
        return int(timestamp_ms)
    if seq := row.get("seq"):
        return INVENTED_EPOCH_MS + 1000 * int(seq)
    raise ValueError("a row needs a time: one of `timestamp`, `timestamp_ms`, `seq` must be filled")


@lru_cache(maxsize=1024)  # all lines of an order share one time
def _iso_ms(text: str) -> int:
    """Reads an ISO 8601 time as epoch milliseconds; without a zone it is UTC."""
    if _NUMBER.fullmatch(text) and (problem := unit_problem(float(text))):
        raise ValueError(problem)
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".csv")


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(path: Path, *, required: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Reads a CSV file's rows with their numbers, from 1; a cell that is not there is empty."""
    try:
        with _open(path) as file:
            reader = csv.DictReader(file, restval="")
            if missing := [name for name in required if name not in (reader.fieldnames or ())]:
                raise DatasetError(
                    f"{path} must have the columns {', '.join(required)}, lacks {', '.join(missing)}; "
                    f"it has {', '.join(reader.fieldnames or ()) or 'no header'}"
                )
            yield from enumerate(reader, start=1)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _bad_row(path: Path, number: int, error: ValueError) -> DatasetError:
    return DatasetError(f"{path}, row {number}: {one_line(error)}")
