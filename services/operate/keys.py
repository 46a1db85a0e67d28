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
    help="Make, list and revoke API keys.\n\nExample: headwater keys new shop --scope read",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FilePath = Annotated[
    Path | None, typer.Option("--keys-file", metavar="FILE", help="Keys file; default: `security.keys_file`.")
]


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", callback=utf8_text, help="Name of the holder.")],
    scope: Annotated[list[Scope], typer.Option("--scope", help="Calls that the key allows; repeatable.")],
    days: Annotated[
        float | None, typer.Option("--days", min=0.001, metavar="D", help="Days until it expires; default: never.")
    ] = None,
    keys_file: FilePath = None,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Make a key and print it.

    The key itself is not stored, and cannot be shown again. Running processes accept it within a second. To rotate a
    key, make a new one with the same name, distribute it, then revoke the old one.

    Example: headwater keys new shop --scope read --scope events --days 365
    """
    typer.echo(_file(keys_file, config, log_level).make(name, scope, days=days))


@keys.command("list")
def list_keys(keys_file: FilePath = None, config: Config = None, log_level: LogLevel = None) -> None:
    """List the keys, the oldest first.

    Columns: id, name, scopes, state, creation time, expiry time.

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
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id that `list` shows: 8 digits, not secret.")],
    keys_file: FilePath = None,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Revoke a key.

    Every process that reads the keys file refuses it within a second.

    Example: headwater keys revoke 1f00ab77
    """
    revoked = _file(keys_file, config, log_level).revoke(key_id)
    typer.echo(f"{revoked.id} of {revoked.name} is revoked")


def _file(path: Path | None, config: Path | None, log_level: LogLevel) -> "KeysFile":
    """Return the keys file that the option or the settings name."""
    settings = settings_from(config, None, log_level)
    from services.web.access.keys import KeysError, KeysFile

    chosen = path or settings.security.keys_file
    if chosen is None:
        raise KeysError("`security.keys_file` must name the keys file, it is not set; set it, or give --keys-file")
    return KeysFile(chosen)
