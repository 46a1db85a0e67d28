"""The commands `headwater keys ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.options import Config, LogLevel, settings_from, utf8_text
from services.web.access.scopes import Scope

if TYPE_CHECKING:
    from services.web.access.keys import KeysFile

keys = typer.Typer(
    name="keys",
    help="Make, list and revoke the keys that callers show.\n\nExample: headwater keys new shop --scope read",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FilePath = Annotated[
    Path | None, typer.Option("--keys-file", metavar="FILE", help="The keys file; else `security.keys_file`.")
]


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", callback=utf8_text, help="Who gets it.")],
    scope: Annotated[list[Scope], typer.Option("--scope", help="What it is good for; may be given more than once.")],
    days: Annotated[
        float | None, typer.Option("--days", min=0.001, metavar="D", help="For so many days; else for ever.")
    ] = None,
    keys_file: FilePath = None,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Make a key, and print it: it is kept nowhere, and cannot be shown again.

    Processes that run take it up within a second. To change a key over: make a new one of the same name, give it out,
    then revoke the old one.

    Example: headwater keys new shop --scope read --scope events --days 365
    """
    typer.echo(_file(keys_file, config, log_level).make(name, scope, days=days))


@keys.command("list")
def list_keys(keys_file: FilePath = None, config: Config = None, log_level: LogLevel = None) -> None:
    """List the keys, the oldest first: id, name, scopes, state, made when, good until when.

    Example: headwater keys list --keys-file keys.json
    """
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    for key in sorted(_file(keys_file, config, log_level).read().keys, key=lambda key: key.created_at):
        until = key.expires_at.isoformat() if key.expires_at else "-"
        fields = [key.id, key.name, ",".join(key.scopes), key.state(now), key.created_at.isoformat(), until]
        typer.echo("\t".join(fields))


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it: 8 digits, no secret.")],
    keys_file: FilePath = None,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Have a key be good for nothing, within a second, wherever the file is read.

    Example: headwater keys revoke 1f00ab77
    """
    revoked = _file(keys_file, config, log_level).revoke(key_id)
    typer.echo(f"{revoked.id} of {revoked.name} is revoked")


def _file(path: Path | None, config: Path | None, log_level: LogLevel) -> "KeysFile":
    """The keys file that is meant."""
    settings = settings_from(config, None, log_level)
    from services.web.access.keys import KeysError, KeysFile

    chosen = path or settings.security.keys_file
    if chosen is None:
        raise KeysError("`security.keys_file` must name the keys file, it is not set; set it, or give --keys-file")
    return KeysFile(chosen)
