"""Options that several commands of `headwater adapters` share."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.options import Level, settings_from

if TYPE_CHECKING:
    from services.registry.client import RegistryClient

Version = Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Version that `list` shows.")]
AnyVersion = Annotated[int | None, typer.Argument(min=1, metavar="VERSION", help="Version that `list` shows.")]


def open_registry(
    registry_url: str | None,
    config: Any,
    bootstrap_servers: str | None,
    log_level: Level | None,
    scenario: str | None,
) -> "tuple[str, RegistryClient]":
    """Return the scenario's name and a client of the registry that options and settings name."""
    settings = settings_from(config, bootstrap_servers, log_level, scenario, registry={"url": registry_url})

    from services.registry.client import open_client

    return settings.scenario, open_client(settings)
