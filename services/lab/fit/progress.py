"""Progress of a fit: bars on a terminal, a line every 15 s elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.lab.fit.passes import Progress as Step

_LINE_SECONDS = 15.0


class PassProgress:
    """Progress bars, one for each pass over the data.

    Args:
        console: the console to print to; bars are shown only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._next_line = time.monotonic() + _LINE_SECONDS

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop updating the bars."""
        self._bars.stop()

    def begin(self, name: str, events: int) -> Step:
        """Begin a pass over a number of events, and return the callback for its progress."""
        task = self._bars.add_task(name, total=events)
        done = 0

        def step(advance: int) -> None:
            nonlocal done
            done += advance
            self._bars.update(task, advance=advance)
            self._line(name, done, events)

        return step

    def _line(self, name: str, done: int, events: int) -> None:
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self._console.print(f"{name}: {done:,} of {events:,} events")
