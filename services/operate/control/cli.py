"""The commands `headwater forget`, `headwater quarantine`, `headwater guard` and `headwater secret`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.options import Config, LogLevel, Servers, settings_from, utf8_text

quarantine = typer.Typer(
    name="quarantine",
    help="List users and items in quarantine, and release them.\n\nExample: headwater quarantine list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
guard = typer.Typer(
    name="guard",
    help="List what the abuse guard leaves out at present.\n\nExample: headwater guard list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
secret = typer.Typer(
    name="secret",
    help="Show or replace the secret that hides user ids.\n\nExample: headwater secret show",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@guard.callback()
@secret.callback()
def _group() -> None:
    """Keep a group of one command a group."""


def _user_id(text: str) -> str:
    """Check an id by the rules of events: an empty id would name everybody who has none."""
    from streams.events import MAX_ID_CHARS

    if not 1 <= len(text) <= MAX_ID_CHARS:
        raise typer.BadParameter(f"must have 1 to {MAX_ID_CHARS} characters, as in events, got {len(text)}")
    return utf8_text(text)


def forget(
    user_id: Annotated[
        str,
        typer.Argument(metavar="USER_ID", callback=_user_id, help="The shopper's id, as in your events."),
    ],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Make the deployment forget a shopper.

    Updaters and scorers that read the control topic drop the shopper's history, events that wait for a join, and the
    abuse guard's counts; dead letters that name the shopper are removed. The command needs the secret of the
    deployment (`privacy`), because every process knows shoppers by pseudonym alone, and refuses another one. The
    events themselves stay on their topics until Kafka's retention ends.

    Example: headwater forget ann --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.control.command import forget as run

    forgotten = run(settings, user_id)
    typer.echo(f"done: the command to forget {forgotten.user} is on {settings.topics.control}")
    typer.echo(f"done: {forgotten.dead_letters} dead letters removed")
    typer.echo("not verified: updaters, scorers and state writers forget the shopper when they read that topic")
    if not forgotten.is_checked:
        typer.echo("not verified: whether this is the deployment's secret; no updater has published a fingerprint")


@quarantine.command("list")
def quarantine_list(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """List the users and items in quarantine, the latest first.

    Columns: key, rule, count and limit, start time.

    Example: headwater quarantine list --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.control.command import quarantined

    for entry in quarantined(settings):
        since = _moment(entry.why.ts, "seconds")
        typer.echo(f"{entry.key}\t{entry.why.reason}\t{entry.why.count:g} of {entry.why.limit:g}\t{since}")


@quarantine.command("release")
def quarantine_release(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", callback=utf8_text, help="user/<pseudonym> or item/<item id>, as listed."),
    ],
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Release a user or an item from quarantine.

    For a week of event time its events count without limit. An item that is not in quarantine can be released too,
    before a campaign sends many shoppers to it.

    Example: headwater quarantine release item/mug-1 --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.operate.control.command import KINDS, release

    if not key.startswith(KINDS) or key in KINDS:
        raise typer.BadParameter(f"KEY must be user/<pseudonym> or item/<item id>, got {key!r}; see `quarantine list`")
    was_in = release(settings, key)
    typer.echo(
        f"{key} released" if was_in else f"{key} was not in quarantine; its events count without limit from now on"
    )


@guard.command("list")
def guard_list(
    json_: Annotated[bool, typer.Option("--json", help="One JSON document per line.")] = False,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """List the items and users that a rule of the guard limits.

    An entry is an item or a user that was capped or weighed down in this hour of event time or the one before. Columns:
    scenario, key, rule, events left out, events weighed down, hour. Updaters report with each checkpoint. Quarantine is
    listed apart: see `headwater quarantine list`.

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
            typer.echo(f"{report.scenario}\t{cap.key}\t{cap.rule}\t{counts}\t{_moment(cap.hour_ms, 'minutes')}")
        if report.others:
            typer.echo(f"{report.scenario}: {report.others} more with fewer events", err=True)


@secret.command("show")
def secret_show(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """Show the fingerprints of the local and the deployed secret.

    A fingerprint does not reveal the secret.

    Example: headwater secret show --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.secrets import published_fingerprint
    from streams.privacy import pseudonymiser

    typer.echo(f"here\t{pseudonymiser(settings.privacy, make=False).fingerprint()}")
    typer.echo(f"deployment\t{published_fingerprint(settings) or 'none published'}")


@secret.command("reset")
def secret_reset(config: Config = None, bootstrap_servers: Servers = None, log_level: LogLevel = None) -> None:
    """Let the deployment change to another secret.

    The published fingerprint is deleted; the next updater that starts publishes its own. Everything known about
    shoppers is lost with the old secret. Stop all processes, set the new secret for all of them, move the checkpoints
    away, run this command, then start the updater first.

    Example: headwater secret reset --bootstrap-servers kafka:9092
    """
    settings = settings_from(config, bootstrap_servers, log_level)
    from services.secrets import reset

    reset(settings)
    typer.echo("the published fingerprint is deleted; the next updater that starts publishes its own")


def _moment(epoch_ms: int, timespec: str) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch_ms / 1_000, UTC).isoformat(timespec=timespec)
