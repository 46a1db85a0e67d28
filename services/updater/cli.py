"""The command `headwater updater`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, LogLevel, RegistryUrl, Scenario, Servers, settings_from


def updater(
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option("--checkpoint-dir", metavar="DIR", help="Directory to keep checkpoints in and to resume from."),
    ] = None,
    registry_url: RegistryUrl = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, max=65535, metavar="PORT", help="Port of /metrics; 0 takes a free one."),
    ] = None,
    max_events: Annotated[
        int | None, typer.Option("--max-events", min=1, metavar="N", help="Stop after N learnt events; default: never.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Learn from events without stopping, and publish adapters.

    Example: headwater updater --bootstrap-servers kafka:9092 --checkpoint-dir ./checkpoints --registry-url ./registry
    """
    section = {
        "checkpoint_dir": checkpoint_dir,
        "registry_url": registry_url,
        "metrics_port": metrics_port,
        "max_events": max_events,
    }
    settings = settings_from(config, bootstrap_servers, log_level, scenario, updater=section)
    from services.updater.command import run

    run(settings)
