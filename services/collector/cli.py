"""The command `headwater collector`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, Host, LogLevel, Port, Servers, settings_from


def collector(
    host: Host = None,
    port: Port = None,
    spool_path: Annotated[
        Path | None,
        typer.Option("--spool-path", metavar="FILE", help="File that holds accepted events until Kafka has them."),
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Accept events over HTTP from producers without Kafka.

    POST /v1/events takes one event, or {"events": [...]}, and returns 202 with the outcome of each event. Accepted
    events are on disk in the spool, and are sent to Kafka in order of acceptance, at once or when Kafka is back. When
    the spool is full, the answer is 429 with Retry-After.

    Example: headwater collector --bootstrap-servers kafka:9092 --port 8085

    Then: curl -s localhost:8085/v1/events -H 'content-type: application/json'
    -d '{"type": "click", "user_id": "ann", "item_id": "mug-1"}'
    """
    section = {"host": host, "port": port, "spool_path": spool_path}
    settings = settings_from(config, bootstrap_servers, log_level, collector=section)
    from services.collector.command import run

    run(settings)
