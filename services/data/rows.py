"""Tables with a header: CSV, also separated by semicolons, tabs or vertical bars."""

import csv
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from services.data.files import InputError, not_utf8

DELIMITERS = (",", ";", "\t", "|")
LONGEST_CELL = 16 * 2**20  # characters; events have their own limits
NAMED = 5  # rows that are named one by one; the others are counted

JSON_BEGINS = ("{", "[")

_EXCEL_HINT = re.compile(r"sep=(.)\s*")  # Excel's own first line

csv.field_size_limit(LONGEST_CELL)


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of a table.

    Attributes:
        number: the number of the row from 1, without the header.
        line: the line of the file where the row begins, from 1.
        cells: the cells by column; a missing cell is empty.
        fault: the reason why the row cannot be used; None if it can.
    """

    number: int
    line: int
    cells: dict[str, str]
    fault: str | None = None


@dataclass(slots=True)
class RefusedRows:
    """Rows that were skipped.

    Attributes:
        strict: whether the first refused row raises an error instead.
        count: the number of refused rows.
        named: file, line, value and reason of the first few rows.
        item_ids: ids of items whose rows were refused.
    """

    strict: bool = True
    count: int = 0
    named: list[str] = field(default_factory=list)
    item_ids: set[str] = field(default_factory=set)

    def refuse(self, problem: str) -> None:
        """Count a row, and name it if it is one of the first.

        Raises:
            InputError: the first refused row is an error (`strict`).
        """
        if self.strict:
            raise InputError(problem)
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(problem)

    def lines(self) -> Iterator[str]:
        """Yield lines that report the refused rows."""
        yield from self.named
        if self.count > len(self.named):
            yield f"... and {self.count - len(self.named):,} more"
        if self.count:
            yield f"{self.count:,} bad rows skipped; --strict stops at the first"


@contextmanager
def refused_rows(*, strict: bool) -> Iterator[RefusedRows]:
    """Yield a collection of refused rows, and print them on standard error at the end, also if nothing could be read.

    Args:
        strict: whether the first refused row raises an error instead.
    """
    refused = RefusedRows(strict=strict)
    try:
        yield refused
    finally:
        for line in refused.lines():
            sys.stderr.write(f"{line}\n")


def table_rows(
    lines: Iterator[str],
    path: Path,
    *,
    required: Sequence[str],
    known: Collection[str],
    instead: Mapping[str, str] | None = None,
) -> Iterator[InputRow]:
    """Yield a table's rows. The delimiter is the one that splits the header into the most known columns.

    Args:
        lines: the lines of the file, as `services.data.files` opens it, with their ends.
        path: the file's name in errors.
        required: columns that the table must have.
        known: all columns that have a meaning.
        instead: the remedy for a missing column, by its name.

    Raises:
        InputError: a column is missing, the header cannot be used, or there is no row.
    """
    delimiter, columns, header_lines = _header(lines, path, known)
    _require_columns(path, columns, required, instead or {})
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        begins = header_lines + reader.line_num + 1
        try:
            cells = next(reader, None)
            fault = None if cells is None else _fault(cells, columns, delimiter)
        except csv.Error as error:
            if "end of data" in str(error):
                raise InputError(
                    f"{path}, line {begins}: a quotation mark is opened and never closed; close it, or double it"
                ) from error
            cells, fault = [], f"not CSV: {error}"
        if cells is None:
            break
        if cells or fault is not None:  # an empty line is not a row
            number += 1
            present = dict(zip(columns, cells, strict=False))
            yield InputRow(number, begins, dict.fromkeys(columns, "") | present, fault)
    if number == 0:
        raise InputError(f"{path} has a header and no rows")


def looks_like_table(header: str, known: Collection[str]) -> bool:
    """Return whether a line is the header of a table: several columns, one of them known or similar to a known one."""
    if _EXCEL_HINT.fullmatch(header):
        return True
    columns = _split(header, max(DELIMITERS, key=header.count))
    return (
        not header.startswith(JSON_BEGINS) and len(columns) > 1 and any(_nearest(column, known) for column in columns)
    )


def _header(lines: Iterator[str], path: Path, known: Collection[str]) -> tuple[str, list[str], int]:
    """Read the header; return the delimiter, the columns and the number of lines read."""
    first, line = next(lines, ""), 1
    while first and not first.strip():
        first, line = next(lines, ""), line + 1
    if first.lstrip().startswith(JSON_BEGINS):
        raise InputError(f"{path} must be a table with a header (CSV or TSV), got JSON; `headwater publish` sends JSON")
    if hint := _EXCEL_HINT.fullmatch(first):
        return hint[1], _split(next(lines, ""), hint[1]), line + 1

    def columns_known(delimiter: str) -> tuple[int, int]:
        columns = _split(first, delimiter)
        return len(set(columns) & set(known)), len(columns)

    delimiter = max(DELIMITERS, key=columns_known)
    return delimiter, _split(first, delimiter), line


def _split(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header.rstrip("\r\n")], delimiter=delimiter), [])]


def _require_columns(path: Path, columns: Sequence[str], required: Sequence[str], instead: Mapping[str, str]) -> None:
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise InputError(f"{path} has the column {twice[0]} more than once; leave one out")
    missing = [name for name in required if name not in columns]
    if not missing:
        return
    nearest = {name: _nearest(name, [column for column in columns if column not in required]) for name in missing}
    hints = "".join(f"; is {column!r} meant to be {name}?" for name, column in nearest.items() if column)
    hints += "".join(f"; {instead[name]}" for name in missing if name in instead)
    unread = "" if len(missing) < len(required) else " cannot be read: it"
    raise InputError(
        f"{path}{unread} must have the columns {', '.join(required)}, lacks {', '.join(missing)}; "
        f"it has {', '.join(filter(None, columns)) or 'no header'}{hints}"
    )


def _nearest(name: str, names: Collection[str]) -> str | None:
    plain = {re.sub(r"[\W_]", "", other).lower(): other for other in names}
    matches = get_close_matches(re.sub(r"[\W_]", "", name).lower(), plain, n=1, cutoff=0.7)
    return plain[matches[0]] if matches else None


def _fault(cells: Sequence[str], columns: Sequence[str], delimiter: str) -> str | None:
    if any(cells[len(columns) :]):
        return f"has {len(cells)} cells, and the header {len(columns)}; quote cells that contain {delimiter!r}"
    return not_utf8(delimiter.join(cells))
