"""The options of `headwater state-writer`."""

from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from


def state_writer(
    redis_url: Annotated[
        str | None, typer.Option("--redis-url", metavar="URL", help="Redis or Valkey: redis://HOST:PORT/DB, rediss://.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, max=65535, metavar="PORT", help="Port of /metrics; 0 takes a free one."),
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Write shoppers' clicks and purchases to Redis or Valkey.

    Scorers with the setting `state.source` redis read them there.

    One process writes; further ones stand by and take over within seconds. Pass a password in
    HEADWATER_STATE__REDIS_URL or in the settings file: other users of the machine can read command lines.

    Example: headwater state-writer --bootstrap-servers kafka:9092 --redis-url redis://redis:6379/0
    """
    section = {"redis_url": redis_url, "metrics_port": port}
    settings = settings_from(config, bootstrap_servers, log_level, state=section)
    from services.state.command import run

    run(settings)
