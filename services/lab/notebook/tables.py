"""Tables of items and events, given as a file or as a data frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

from services.data.files import InputError


@runtime_checkable
class DataFrame(Protocol):
    """The one method of a pandas data frame that is used here."""

    def to_csv(self, path_or_buf: Any, *, index: bool) -> Any:
        """Write the frame as CSV, without its index."""


Table = Path | str | DataFrame

_LINE = re.compile(r" \(line \d+\)")  # of the temporary file


@contextmanager
def as_file(table: Table, name: str) -> Iterator[Path]:
    """Yield the path of a table; a data frame is written to a temporary CSV file first.

    A data frame is thus read by the same rules as a file. Errors name the frame, and its rows from 1.

    Args:
        table: path of a file (CSV, TSV or JSON lines, plain or gzipped), or a data frame.
        name: name of the table, for error messages and event ids.

    Raises:
        TypeError: the table is neither a path nor a data frame.
        InputError: the caller of the context found the data frame invalid.
    """
    if isinstance(table, Path | str):
        yield Path(table)
        return
    if not isinstance(table, DataFrame):
        raise TypeError(
            f"`{name}` must be a path or a pandas.DataFrame, got {_class_name(table)}; "
            "convert it: pandas.DataFrame(...), or .to_pandas() of another library's frame"
        )
    with TemporaryDirectory(prefix="headwater-") as directory:
        path = Path(directory, f"{name}.csv")
        table.to_csv(path, index=False)
        try:
            yield path
        except InputError as error:
            message = str(error).replace(str(path), f"data frame `{name}`")
            raise InputError(_LINE.sub("", message)) from None


def _class_name(value: object) -> str:
    """Return a class with its module, so that data frames of two libraries can be told apart."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def sample_files() -> tuple[Path, Path]:
    """Return the paths of the bundled sample: items, and 48,098 real purchases of the Online Retail data set (CC0)."""
    directory = Path(str(files("services.lab.demo").joinpath("data")))
    return directory / "items.csv.gz", directory / "events.csv.gz"
