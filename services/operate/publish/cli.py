"""The commands `headwater publish` and `headwater schema`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, Strict, settings_from


class EventKind(StrEnum):
    """The kinds of events that producers publish."""

    impression = "impression"
    click = "click"
    purchase = "purchase"
    item = "item"


def schema(
    kind: Annotated[EventKind | None, typer.Argument(help="Kind of event; default: all kinds.")] = None,
) -> None:
    """Print the JSON Schema of the events.

    Example: headwater schema click
    """
    import json

    from streams.events import json_schemas

    schemas = json_schemas()
    typer.echo(json.dumps(schemas[kind.value] if kind else schemas, indent=2))


def publish(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="Events as JSON or as a table with a header; - is standard input.")
    ],
    kind: Annotated[
        EventKind | None,
        typer.Option("--kind", help="Kind of every event; default: `type` or `event_type` of each line."),
    ] = None,
    strict: Strict = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Send events from a file or standard input.

    The input is one JSON object per line, a JSON array, or a table with a header. Tables are separated by commas,
    semicolons or tabs; their columns are those of `headwater replay`. Gzip, UTF-8 and UTF-16 are recognised. An event
    without event_id gets a random one, an event without a time the present time. Bad lines are reported and skipped;
    the exit status is then 1.

    A catalogue: headwater publish items.csv --kind item

    Example: echo '{"type": "click", "user_id": "u1", "item_id": "i1"}' | headwater publish -
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.publish.command import run

    summary = run(settings, file, kind=kind.value if kind else None, strict=strict)
    for number, reason in summary.first_bad:
        typer.echo(f"line {number}: {reason}", err=True)
    if summary.bad > len(summary.first_bad):
        typer.echo(f"... and {summary.bad - len(summary.first_bad)} more bad lines", err=True)
    typer.echo(f"{summary.delivered} events delivered, {summary.bad} bad lines skipped")
    if summary.bad:
        raise typer.Exit(1)
