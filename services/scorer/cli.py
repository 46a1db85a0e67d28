"""The command `headwater scorer`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, Host, LogLevel, Port, RegistryUrl, Scenario, Servers, settings_from


def scorer(
    host: Host = None,
    port: Port = None,
    registry_url: RegistryUrl = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", metavar="DIR", help="Directory of the cache of frozen activations per text."),
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve rankings over HTTP, from the newest adapter.

    Example: headwater scorer --bootstrap-servers kafka:9092 --registry-url http://registry:8084/v1/files --port 8080
    """
    section = {"host": host, "port": port, "registry_url": registry_url}
    encoder = {"cache_dir": cache_dir}
    settings = settings_from(config, bootstrap_servers, log_level, scenario, scorer=section, encoder=encoder)
    from services.scorer.command import run

    run(settings)
