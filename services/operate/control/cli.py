"""`headwater guard` and `headwater secret` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from

guard = typer.Typer(name="guard", help="Look at what the abuse guard leaves out at present.", no_args_is_help=True)
secret = typer.Typer(name="secret", help="Look at the secret that hides user ids, and change it.", no_args_is_help=True)


@guard.callback()
@secret.callback()
def _group() -> None:
    """A callback keeps a group of one command a group."""


@guard.command("list")
def guard_list(
    json_: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """List items and users that a rule of the guard caps or weighs down in this hour of event time or the one before.

    Columns: scenario, key, rule, events left out, events weighed down, hour. Updaters report with each checkpoint.
    Quarantine is apart: see `headwater quarantine list`.

    Example: headwater guard list --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    import json

    from services.operate.control.command import guard_reports

    for report in guard_reports(settings):
        for cap in report.caps:
            if json_:
                typer.echo(json.dumps({"scenario": report.scenario, "reported_at_ms": report.ts} | cap.model_dump()))
                continue
            counts = f"{cap.left_out} left out\t{cap.weighed_down} weighed down"
            typer.echo(f"{report.scenario}\t{cap.key}\t{cap.rule}\t{counts}\t{_moment(cap.hour_ms)}")
        if report.others:
            typer.echo(f"{report.scenario}: {report.others} more with fewer events", err=True)


@secret.command("show")
def secret_show(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """Show the fingerprint of the secret here and of the deployment's. A fingerprint does not give the secret away.

    Example: headwater secret show --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.secrets import published_fingerprint
    from streams.privacy import pseudonymiser

    typer.echo(f"here\t{pseudonymiser(settings.privacy, make=False).fingerprint()}")
    typer.echo(f"deployment\t{published_fingerprint(settings) or 'none published'}")


@secret.command("reset")
def secret_reset(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """Have the deployment agree on another secret: the next updater that starts publishes its own.

    Whatever is known of shoppers is lost with the old secret. Stop all processes, set the new secret for all of them,
    move the checkpoints away, run this, then start the updater first.

    Example: headwater secret reset --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.secrets import reset

    reset(settings)
    typer.echo("no secret is agreed on; the next updater that starts publishes the fingerprint of its own")


def _moment(epoch_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch_ms / 1_000, UTC).isoformat(timespec="minutes")
