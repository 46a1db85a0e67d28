"""Views of the running demo: live panels on a terminal, a line every 5 s elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from services.lab.demo.summary import milliseconds, seconds, share

LINE_EVERY_SECONDS = 5.0
BAR_WIDTH = 40  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSnapshot:
    """The state of one scorer."""

    name: str
    version: int
    versions_served: int
    answered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the demo at one time; freshness is that of the last few seconds."""

    doing: str
    elapsed_seconds: float
    events_total: int
    published: int
    events_per_second: float
    learnt: int
    adapters_published: int
    scorers: list[ScorerSnapshot]
    freshness_p50_seconds: float | None
    freshness_p95_seconds: float | None
    hr20_live: float | None
    hr20_never_updated: float | None
    judged: int
    requests: int
    failed: int
    rank_p50_ms: float | None
    rank_p99_ms: float | None


class View(Protocol):
    """The interface of a view."""

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""


class LiveView:
    """Panels that are redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Start drawing on the terminal."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and release the terminal."""
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self._live.update(panels(snapshot), refresh=True)


class LinesView:
    """Lines for logs, one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0

    def show(self, snapshot: Snapshot) -> None:
        """Print a line, unless the last one is less than 5 s old."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_EVERY_SECONDS
            self._console.print(line(snapshot), highlight=False, soft_wrap=True)


@contextmanager
def view_for(console: Console) -> Iterator[View]:
    """Yield the view that suits the console."""
    if console.is_terminal:
        with LiveView(console) as view:
            yield view
    else:
        yield LinesView(console)


def line(snapshot: Snapshot) -> str:
    """Return a snapshot as one line."""
    versions = " and ".join(str(scorer.version) for scorer in snapshot.scorers)
    return (
        f"{snapshot.elapsed_seconds:4.0f} s  {snapshot.doing}: "
        f"{snapshot.published:,} of {snapshot.events_total:,} events, "
        f"{snapshot.events_per_second:.0f}/s, {snapshot.learnt:,} learnt; adapters {versions}; "
        f"freshness {seconds(snapshot.freshness_p50_seconds)}, p95 {seconds(snapshot.freshness_p95_seconds)}; "
        f"HR@20 {share(snapshot.hr20_live)}, never updated {share(snapshot.hr20_never_updated)}; "
        f"{snapshot.requests:,} requests, {snapshot.failed:,} failed"
    )


def panels(snapshot: Snapshot) -> RenderableType:
    """Return a snapshot as panels."""
    return Panel(
        Group(_stream(snapshot), "", _scorers(snapshot), "", _quality(snapshot), "", _requests(snapshot)),
        title="Headwater",
        subtitle=f"{snapshot.doing}, {snapshot.elapsed_seconds:.0f} s; Ctrl-C stops everything",
        width=96,
    )


def _stream(snapshot: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "events published",
        ProgressBar(total=snapshot.events_total, completed=snapshot.published, width=BAR_WIDTH),
        f"[bold]{snapshot.published:,}[/] of {snapshot.events_total:,}",
        f"{snapshot.events_per_second:.0f}/s",
    )
    table.add_row(
        "events learnt",
        ProgressBar(total=snapshot.events_total, completed=snapshot.learnt, width=BAR_WIDTH),
        f"[bold]{snapshot.learnt:,}[/]",
        f"{snapshot.adapters_published} adapters",
    )
    return table


def _scorers(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for heading in ("scorer", "adapter version", "adapters served", "requests answered"):
        table.add_column(heading, justify="left" if heading == "scorer" else "right")
    for scorer in snapshot.scorers:
        table.add_row(scorer.name, f"[bold]{scorer.version}[/]", str(scorer.versions_served), f"{scorer.answered:,}")
    return table


def _quality(snapshot: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value, style in (
        ("HR@20 live", snapshot.hr20_live, "green"),
        ("never updated", snapshot.hr20_never_updated, "yellow"),
    ):
        bar = ProgressBar(
            total=1.0, completed=value or 0.0, width=BAR_WIDTH, complete_style=style, finished_style=style
        )
        table.add_row(name, bar, f"[bold]{share(value)}[/]", f"of {snapshot.judged:,} purchases foretold")
    return table


def _requests(snapshot: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "freshness",
        f"[bold]{seconds(snapshot.freshness_p50_seconds)}[/], p95 {seconds(snapshot.freshness_p95_seconds)}",
        "from an event to the first answer that has learnt it",
    )
    failed = f"[red]{snapshot.failed:,} failed[/]" if snapshot.failed else "0 failed"
    ranking = f"100 items ranked in {milliseconds(snapshot.rank_p50_ms)}, p99 {milliseconds(snapshot.rank_p99_ms)}"
    table.add_row("requests", f"[bold]{snapshot.requests:,}[/] answered, {failed}", ranking)
    return table
