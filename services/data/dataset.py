"""Tables of a data set, plain or gzipped, read as the events that a shop would have published.

Columns of items: ``item_id, title`` and, optionally, ``kind, description, tags, category, brand, price, status,
in_stock, first_seen``; tags, split by ``|``, are put before the description. A column ``vectors.<name>`` holds vectors
of that modality, each a JSON list of numbers; all vectors of a column have the same length.
Columns of events: ``timestamp`` (ISO 8601), ``timestamp_ms``, ``ts`` (either) or ``seq``; ``user_id, event_type,
item_id`` and, optionally, ``session_id, request_id, order_id, position, quantity, price, shown_items, query``. A
query is that of the impression, or the one that led to the click or purchase. Other columns are ignored.

Missing values are filled by fixed rules, so that two reads give the same events:

- Times without a zone are taken as UTC. With ``seq`` alone, times are **invented**, one second apart from
  `INVENTED_EPOCH_MS`: only their order has a meaning.
- An item without ``first_seen`` gets the time `INVENTED_EPOCH_MS`.
- A row without a user is a guest, one per session: ``guest-<session_id>``, or per row if there is no session.
- ``event_id`` is ``<file stem>-<row>``, with rows counted from 1, skipped rows included. A second replay of the
  same file is therefore dropped as duplicates.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.data.files import open_text
from services.data.rows import InputRow, RefusedRows, table_rows
from services.faults import one_line
from streams.events import SECONDS_FROM, Click, Event, Impression, Item, Purchase, parse_number, unit_problem

INVENTED_EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z
DEFAULT_SCENARIO = "home"
_VECTORS = "vectors."  # prefix of a modality in a column name

ITEM_COLUMNS = frozenset(
    {
        *("item_id", "title", "kind", "description", "tags", "category", "brand", "price"),
        *("status", "in_stock", "first_seen"),
    }
)
EVENT_COLUMNS = frozenset(
    {
        *("timestamp", "timestamp_ms", "ts", "seq", "user_id", "session_id", "event_type", "item_id"),
        *("request_id", "order_id", "position", "quantity", "price", "shown_items", "query"),
    }
)

Row = dict[str, str]


def read_items(path: Path, *, refused: RefusedRows | None = None) -> Iterator[Item]:
    """Read a catalogue.

    Args:
        path: the table, in a format of `services.data.files` and `services.data.rows`.
        refused: collects invalid rows; without it the first one is an error.

    Yields:
        One item per row, in file order.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row is not a valid item.
    """
    stem, lengths = _stem(path), dict[str, int]()
    refused = refused or RefusedRows()
    for row in _rows(path, required=("item_id", "title"), known=ITEM_COLUMNS):
        try:
            item = item_of_row(_usable(row), event_id=f"{stem}-{row.number}", ts=_first_seen_ms(row.cells))
            _require_lengths(item, lengths)
        except ValueError as error:
            refused.item_ids.add(row.cells["item_id"])
            refused.refuse(_problem(path, row, error))
            continue
        yield item


def read_events(
    path: Path,
    *,
    max_events: int | None = None,
    scenario: str = DEFAULT_SCENARIO,
    skipped: Counter[str] | None = None,
    refused: RefusedRows | None = None,
) -> Iterator[Event]:
    """Read purchases, clicks and impressions.

    Args:
        path: the table, in a format of `services.data.files` and `services.data.rows`.
        max_events: the most events to read, without skipped rows; None reads all.
        scenario: the scenario of every event.
        skipped: counts skipped rows (returns, and other types that carry no signal) by type.
        refused: collects invalid rows; without it the first one is an error.

    Yields:
        One event per row, in file order.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row is not a valid event.
    """
    stem, taken = _stem(path), 0
    refused = refused or RefusedRows()
    for row in _rows(path, required=("user_id", "event_type", "item_id"), known=EVENT_COLUMNS):
        if taken == max_events:
            return
        kind = row.cells["event_type"]
        if row.fault is None and kind not in _EVENT_BUILDERS:
            if skipped is not None:
                skipped[kind] += 1
            continue
        try:
            cells = _usable(row)
            event = event_of_row(cells, kind, event_id=f"{stem}-{row.number}", ts=row_time_ms(cells), scenario=scenario)
        except ValueError as error:
            refused.refuse(_problem(path, row, error))
            continue
        taken += 1
        yield event


def item_of_row(row: Row, *, event_id: str, ts: int) -> Item:
    """Build an item from the cells of a row.

    Args:
        row: the cells by column.
        event_id: the id of the item event.
        ts: the event's time, epoch milliseconds.

    Raises:
        ValueError: a cell breaks a rule.
    """
    return Item.model_validate(
        {
            "event_id": event_id,
            "ts": ts,
            "item_id": row.get("item_id", ""),
            "kind": row.get("kind") or "product",
            "title": row.get("title", ""),
            "description": ". ".join(part for part in (_tags(row), row.get("description", "")) if part),
            "category": row.get("category", ""),
            "brand": row.get("brand", ""),
            "price": row.get("price") or None,
            "status": row.get("status") or "active",
            "in_stock": row.get("in_stock") or True,
            "vectors": {
                name.removeprefix(_VECTORS): json.loads(cell)
                for name, cell in row.items()
                if name and name.startswith(_VECTORS) and cell
            },
        }
    )


def event_of_row(row: Row, kind: str, *, event_id: str, ts: int, scenario: str) -> Event:
    """Build a click, purchase or impression from the cells of a row.

    Args:
        row: the cells by column.
        kind: the kind of event, one of those three.
        event_id: the id of the event.
        ts: the event's time, epoch milliseconds.
        scenario: the scenario of the event.

    Raises:
        ValueError: a cell breaks a rule.
    """
    session_id = row.get("session_id") or None
    common = {
        "event_id": event_id,
        "ts": ts,
        "user_id": row.get("user_id") or guest_id(session_id, event_id),
        "session_id": session_id,
        "scenario": scenario,
        "request_id": row.get("request_id") or None,
    }
    return _EVENT_BUILDERS[kind](row, common)


def guest_id(session_id: str | None, event_id: str) -> str:
    """Return the user id of a row without one: of a guest per session, or per row without a session."""
    return f"guest-{session_id or event_id}"


def _require_lengths(item: Item, lengths: dict[str, int]) -> None:
    """Check that each vector has the length of the first of its name, and record the lengths of new names."""
    for name, vector in item.vectors.items():
        if len(vector) != lengths.setdefault(name, len(vector)):
            raise ValueError(f"`vectors.{name}` must have {lengths[name]} numbers, as the first has, got {len(vector)}")


def _tags(row: Row) -> str:
    return ", ".join(tag for tag in row.get("tags", "").split("|") if tag)


def _click(row: Row, common: dict[str, Any]) -> Click:
    return Click.model_validate(
        {
            **common,
            "item_id": row.get("item_id", ""),
            "position": row.get("position") or None,
            "query": row.get("query") or None,
        }
    )


def _purchase(row: Row, common: dict[str, Any]) -> Purchase:
    return Purchase.model_validate(
        {
            **common,
            "order_id": row.get("order_id") or None,
            "item_id": row.get("item_id", ""),
            "quantity": row.get("quantity") or 1,
            "price": row.get("price") or None,
            "query": row.get("query") or None,
        }
    )


def _impression(row: Row, common: dict[str, Any]) -> Impression:
    shown = [
        {"item_id": item_id, "position": position}
        for position, item_id in enumerate(row.get("shown_items", "").split())
    ]
    return Impression.model_validate(
        {
            **common,
            "request_id": common["request_id"] or common["event_id"],
            "query": row.get("query") or None,
            "items": shown,
        }
    )


_EVENT_BUILDERS: dict[str, Callable[[Row, dict[str, Any]], Event]] = {
    Click.KIND: _click,
    Purchase.KIND: _purchase,
    Impression.KIND: _impression,
}


def _first_seen_ms(row: Row) -> int:
    return _iso_ms(row["first_seen"], "first_seen") if row.get("first_seen") else INVENTED_EPOCH_MS


def row_time_ms(row: Row) -> int:
    """Return the row's time, epoch milliseconds."""
    if timestamp := row.get("timestamp"):
        return _iso_ms(timestamp, "timestamp")
    if timestamp_ms := row.get("timestamp_ms"):
        return _epoch_ms(timestamp_ms, "timestamp_ms")
    if ts := row.get("ts"):
        return _iso_ms(ts, "ts") if parse_number(ts) is None else _epoch_ms(ts, "ts")
    if seq := row.get("seq"):
        number = parse_number(seq)
        if not isinstance(number, int):
            raise ValueError(f"`seq` must be a whole number, got {seq[:40]!r}")
        return INVENTED_EPOCH_MS + 1000 * number
    raise ValueError("a row needs a time: one of `timestamp`, `timestamp_ms`, `ts`, `seq` must be filled")


def has_time(row: Row) -> bool:
    """Return whether a row has a time, and not only a sequence number."""
    return any(row.get(column) for column in ("timestamp", "timestamp_ms", "ts"))


def _epoch_ms(text: str, column: str) -> int:
    """Parse a number of milliseconds, which tables of floats write as 1764500000000.0."""
    number = parse_number(text)
    if number is None or not math.isfinite(number):
        raise ValueError(f"`{column}` must be a number of epoch milliseconds, got {text[:40]!r}")
    if problem := unit_problem(number):
        raise ValueError(problem)
    return round(number)


@lru_cache(maxsize=1024)  # all lines of an order share one time
def _iso_ms(text: str, column: str) -> int:
    """Parse an ISO 8601 time as epoch milliseconds; without a zone it is UTC."""
    number = parse_number(text)
    if number is not None and number >= SECONDS_FROM:  # a smaller number may be a date: 20260131
        raise ValueError(
            unit_problem(number)
            or f"`{column}` must be an ISO 8601 time, got {text[:40]!r}; numbers of milliseconds go to the column "
            "`timestamp_ms`"
        )
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"`{column}` must be an ISO 8601 time such as 2026-01-31T09:00:00Z, got {text[:40]!r}; numbers of "
            "milliseconds go to the column `timestamp_ms`, orders of events without times to `seq`"
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _stem(path: Path) -> str:
    name = os.fsencode(path.name).decode(errors="backslashreplace")  # a file name may be any bytes, an id is UTF-8
    return name.removesuffix(".gz").removesuffix(".csv")


def _rows(path: Path, *, required: tuple[str, ...], known: Collection[str]) -> Iterator[InputRow]:
    with open_text(path) as text:
        yield from table_rows(text, path, required=required, known=known)


def _usable(row: InputRow) -> Row:
    """Return the cells of a row.

    Raises:
        ValueError: the row cannot be used.
    """
    if row.fault is not None:
        raise ValueError(row.fault)
    return row.cells


def _problem(path: Path, row: InputRow, error: ValueError) -> str:
    return f"{path}, row {row.number}: {one_line(error, with_values=True)} (line {row.line})"
