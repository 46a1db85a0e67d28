"""The demo while it runs: a live picture on a terminal, a line now and then elsewhere."""

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
class ScorerNow:
    """One scorer at one moment."""

    name: str
    version: int
    versions_served: int
    answered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The whole at one moment; the freshness is that of the last few seconds."""

    doing: str
    elapsed_seconds: float
    events_total: int
    published: int
    events_per_second: float
    learnt: int
    adapters_published: int
    scorers: list[ScorerNow]
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
    """Something that shows moments."""

    def show(self, moment: Moment) -> None:
        """Shows one."""


class LiveView:
    """A picture that moves."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Takes the terminal."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back."""
        self._live.stop()

    def show(self, moment: Moment) -> None:
        """Draws one moment."""
        self._live.update(picture(moment), refresh=True)


class LinesView:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0

    def show(self, moment: Moment) -> None:
        """Writes a line, unless the last one is very young."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_EVERY_SECONDS
            self._console.print(line(moment), highlight=False, soft_wrap=True)


@contextmanager
def opened(console: Console) -> Iterator[View]:
    """Gives the view that fits the console."""
    if console.is_terminal:
        with LiveView(console) as view:
            yield view
    else:
        yield LinesView(console)


def line(moment: Moment) -> str:
    """One moment in one line."""
    versions = " and ".join(str(scorer.version) for scorer in moment.scorers)
    return (
        f"{moment.elapsed_seconds:4.0f} s  {moment.doing}: {moment.published:,} of {moment.events_total:,} events, "
        f"{moment.events_per_second:.0f}/s, {moment.learnt:,} learnt; adapters {versions}; "
        f"freshness {seconds(moment.freshness_p50_seconds)}, p95 {seconds(moment.freshness_p95_seconds)}; "
        f"HR@20 {share(moment.hr20_live)}, never updated {share(moment.hr20_never_updated)}; "
        f"{moment.requests:,} requests, {moment.failed:,} failed"
    )


def picture(moment: Moment) -> RenderableType:
    """One moment as panels."""
    return Panel(
        Group(_stream(moment), "", _scorers(moment), "", _quality(moment), "", _requests(moment)),
        title="Headwater",
        subtitle=f"{moment.doing}, {moment.elapsed_seconds:.0f} s; Ctrl-C stops everything",
        width=96,
    )


def _stream(moment: Moment) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "events published",
        ProgressBar(total=moment.events_total, completed=moment.published, width=BAR_WIDTH),
        f"[bold]{moment.published:,}[/] of {moment.events_total:,}",
        f"{moment.events_per_second:.0f}/s",
    )
    table.add_row(
        "events learnt",
        ProgressBar(total=moment.events_total, completed=moment.learnt, width=BAR_WIDTH),
        f"[bold]{moment.learnt:,}[/]",
        f"{moment.adapters_published} adapters",
    )
    return table


def _scorers(moment: Moment) -> RenderableType:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for heading in ("scorer", "adapter version", "adapters served", "requests answered"):
        table.add_column(heading, justify="left" if heading == "scorer" else "right")
    for scorer in moment.scorers:
        table.add_row(scorer.name, f"[bold]{scorer.version}[/]", str(scorer.versions_served), f"{scorer.answered:,}")
    return table


def _quality(moment: Moment) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value, style in (
        ("HR@20 live", moment.hr20_live, "green"),
        ("never updated", moment.hr20_never_updated, "yellow"),
    ):
        bar = ProgressBar(
            total=1.0, completed=value or 0.0, width=BAR_WIDTH, complete_style=style, finished_style=style
        )
        table.add_row(name, bar, f"[bold]{share(value)}[/]", f"of {moment.judged:,} purchases foretold")
    return table


def _requests(moment: Moment) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "freshness",
        f"[bold]{seconds(moment.freshness_p50_seconds)}[/], p95 {seconds(moment.freshness_p95_seconds)}",
        "from an event to the first answer that has learnt it",
    )
    failed = f"[red]{moment.failed:,} failed[/]" if moment.failed else "0 failed"
    ranking = f"100 items ranked in {milliseconds(moment.rank_p50_ms)}, p99 {milliseconds(moment.rank_p99_ms)}"
    table.add_row("requests", f"[bold]{moment.requests:,}[/] answered, {failed}", ranking)
    return table
