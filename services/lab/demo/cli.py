"""Options of `headwater demo`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, LogLevel, MaxEvents, Scenario, Servers, settings_from


def demo(
    rate: Annotated[float, typer.Option("--rate", min=1.0, metavar="EVENTS_PER_S", help="Events per second.")] = 330.0,
    max_events: MaxEvents = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end, and print the URLs.")] = False,
    summary_json: Annotated[
        Path | None, typer.Option("--summary-json", metavar="FILE", help="Write the summary to FILE.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", metavar="DIR", help="Keep its files in DIR, not a temporary directory.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Run a whole deployment on a sample of real purchases.

    It starts a broker, the registry, an updater, two scorers and a storefront.

    Example: headwater demo --max-events 5000 --summary-json summary.json
    """
    settings = settings_from(config, bootstrap_servers, log_level, scenario)
    from services.lab.demo.command import run

    status = run(settings, rate=rate, max_events=max_events, keep=keep, summary_json=summary_json, work_dir=work_dir)
    raise typer.Exit(status)
