"""The command `headwater replay`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, Items, LogLevel, MaxEvents, Scenario, Servers, Strict, settings_from


def replay(
    items: Items,
    events: Annotated[
        Path | None,
        typer.Option("--events", metavar="FILE", help="Events in the same formats; default: send the catalogue alone."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, metavar="EVENTS_PER_S", help="Events per second.")
    ] = None,
    speed_up: Annotated[
        float | None,
        typer.Option("--speed-up", min=0.01, metavar="X", help="Follow the data's own time, X times as fast."),
    ] = None,
    max_events: MaxEvents = None,
    strict: Strict = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Send a data set at a chosen pace.

    The catalogue is sent first, then the events in order. An event id is made of the file's name and the row, so a row
    that is replayed twice counts once. Bad rows are reported and skipped; the exit status is then 1.

    Example: headwater replay --items items.csv.gz --events events.csv.gz --rate 300
    """
    settings = settings_from(config, bootstrap_servers, log_level, scenario)
    from services.operate.replay.command import run

    if rate is not None and speed_up is not None:
        raise typer.BadParameter("--rate and --speed-up exclude each other; give one")
    summary = run(
        settings, items=items, events=events, rate=rate, speed_up=speed_up, max_events=max_events, strict=strict
    )
    for line in summary.refused.lines():
        typer.echo(line, err=True)
    skipped = "".join(f", {count} {kind or 'untyped'} rows skipped" for kind, count in summary.skipped.items())
    typer.echo(f"{summary.items} items and {summary.events} events delivered in {summary.seconds:.1f} s{skipped}")
    if summary.refused.count:
        raise typer.Exit(1)
