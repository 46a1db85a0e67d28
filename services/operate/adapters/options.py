"""Options that several commands of `headwater adapters` have."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.options import Level, settings_from

if TYPE_CHECKING:
    from services.registry.client import RegistryClient

Version = Annotated[int, typer.Argument(min=1, metavar="VERSION", help="As `list` shows it.")]
AnyVersion = Annotated[int | None, typer.Argument(min=1, metavar="VERSION", help="As `list` shows it.")]


def reached(
    registry_url: str | None,
    config: Any,
    bootstrap_servers: str | None,
    log_level: Level | None,
    scenario: str | None,
) -> "tuple[str, RegistryClient]":
    """The scenario's name, and the registry."""
    settings = settings_from(config, bootstrap_servers, log_level, scenario, registry={"url": registry_url})
    from services.registry.client import access

    return settings.scenario, access(settings)
