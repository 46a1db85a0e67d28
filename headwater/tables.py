"""Tables of items and events, given as a file or as a data frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class DataFrame(Protocol):
    """The one method of a pandas data frame that is used here."""

    def to_csv(self, path_or_buf: Any, *, index: bool) -> Any:
        """Write the frame as CSV, without its index."""


Table = Path | str | DataFrame


@contextmanager
def as_file(table: Table, name: str) -> Iterator[Path]:
    """Yield the path of a table; a data frame is written to a temporary CSV file first.

    So a data frame is read by the same rules, with the same errors, as a file.

    Args:
        table: path of a file (CSV, TSV or JSON lines, plain or gzipped), or a data frame.
        name: name of the table, for error messages and event ids.

    Raises:
        TypeError: the table is neither a path nor a data frame.
    """
    if isinstance(table, Path | str):
        yield Path(table)
        return
    if not isinstance(table, DataFrame):
        raise TypeError(
            f"`{name}` must be a path or a pandas.DataFrame, got {type(table).__name__}; use DataFrame(...)"
        )
    with TemporaryDirectory(prefix="headwater-") as directory:
        path = Path(directory, f"{name}.csv")
        table.to_csv(path, index=False)
        yield path


def sample_files() -> tuple[Path, Path]:
    """Return the paths of the bundled sample: items, and 48,098 real purchases of the Online Retail data set (CC0)."""
    directory = Path(str(files("services.lab.demo").joinpath("data")))
    return directory / "items.csv.gz", directory / "events.csv.gz"
