"""The options of `headwater state-writer`."""

from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from


def state_writer(
    redis_url: Annotated[
        str | None, typer.Option("--redis-url", metavar="URL", help="Redis or Valkey: redis://HOST:PORT/DB, rediss://.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--metrics-port", min=0, max=65535, metavar="PORT", help="Of its metrics page.")
    ] = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Keep what shoppers do in Redis or Valkey, for scorers whose `state.source` is redis.

    One writes; others, if there are any, stand by and take over within seconds. A password is better given as
    HEADWATER_STATE__REDIS_URL or in the settings file than here, where other users of the machine see it.

    Example: headwater state-writer --bootstrap-servers kafka:9092 --redis-url redis://redis:6379/0
    """
    section = {"redis_url": redis_url, "metrics_port": port}
    settings = settings_from(config, bootstrap_servers, log_level, state=section)
    from services.state.command import run

    run(settings)
