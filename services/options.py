"""Options that several commands share, and loading of settings. The module imports nothing heavy."""

import faulthandler
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from services.settings import Settings


class Level(StrEnum):
    """The least severe level that is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def utf8_text(text: str) -> str:
    """Decode an argument that is an id or a text as UTF-8, even if the locale is ASCII.

    Raises:
        BadParameter: the argument has bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the locale cannot decode became surrogates
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError as error:
            shown = ascii(os.fsencode(text))[1:]
            raise typer.BadParameter(f"must be UTF-8, got {shown}: {error.reason}; type it in UTF-8") from None
    return text


Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings file (TOML).")]
Servers = Annotated[str | None, typer.Option("--bootstrap-servers", metavar="HOST:PORT,...", help="Kafka brokers.")]
LogLevel = Annotated[Level | None, typer.Option("--log-level", help="Least severe level that is logged.")]
Scenario = Annotated[str | None, typer.Option("--scenario", metavar="NAME", help="Scenario: home, search, ads ...")]
RegistryUrl = Annotated[
    str | None, typer.Option("--registry-url", metavar="URL", help="Adapter registry: a directory, s3:// or http://.")
]
Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, metavar="PORT", help="Port to listen on; 0 takes a free one.")
]
MaxEvents = Annotated[int | None, typer.Option("--max-events", min=1, metavar="N", help="Stop after N events.")]
Items = Annotated[
    Path, typer.Option("--items", metavar="FILE", help="Catalogue: CSV or TSV with a header, plain or gzipped.")
]
Events = Annotated[
    Path, typer.Option("--events", metavar="FILE", help="Events: CSV or TSV with a header, plain or gzipped.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row instead of skipping it.")]
FirstPercent = Annotated[
    float, typer.Option("--first-percent", min=0.001, max=100.0, metavar="P", help="Use the oldest P % of events.")
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", metavar="NAME|DIR", help="The frozen encoder, by name or directory.")
]


def settings_from(
    config: Path | None,
    bootstrap_servers: str | None,
    log_level: Level | None,
    scenario: str | None = None,
    **sections: dict[str, Any],
) -> "Settings":
    """Load the settings, with options first, and configure logging."""
    from services.logs import configure_logging
    from services.settings import load_settings

    settings = load_settings(
        config,
        kafka={"bootstrap_servers": bootstrap_servers},
        log_level=log_level.value if log_level else None,
        scenario=scenario,
        **sections,
    )
    configure_logging(level=settings.log_level)
    if sys.__stderr__ is not None:
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)  # prints the stack of a process that hangs
    return settings
