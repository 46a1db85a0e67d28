"""The commands `headwater adapters ...` that change the rollout."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operate.adapters.options import AnyVersion, Version, open_registry
from services.options import Config, LogLevel, RegistryUrl, Scenario, Servers, utf8_text

if TYPE_CHECKING:
    from services.registry.changes import Change
    from services.registry.client import RegistryClient

WAIT_SECONDS = 30.0

LatestOr = Annotated[
    int | None, typer.Option("--version", min=1, metavar="VERSION", help="Version; default: always the latest.")
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", callback=utf8_text, help="Reason of the change, kept in the rollout.")
]
IfRevision = Annotated[
    int | None,
    typer.Option("--if-revision", min=0, metavar="N", help="Change only if the rollout still has revision N."),
]
End = Annotated[bool, typer.Option("--end", help="End it.")]
Workers = Annotated[
    list[str] | None,
    typer.Option("--worker", metavar="URL", help="Also wait for this scorer: http://HOST:PORT; repeatable."),
]
WaitSeconds = Annotated[
    float,
    typer.Option("--wait-seconds", min=0, max=3600, metavar="S", help="Longest wait for workers; 0 does not wait."),
]


def pin(
    version: Version,
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve one version to all shoppers until `unpin`.

    Later publications are not served. A canary ends.

    Example: headwater adapters pin 17 --reason "the last one before the campaign"
    """
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Pin

    _change(client, name, workers, wait_seconds, Pin(version=version, reason=reason, if_revision=if_revision))


def unpin(
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve the latest version again. A canary ends.

    Example: headwater adapters unpin
    """
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Unpin

    _change(client, name, workers, wait_seconds, Unpin(reason=reason, if_revision=if_revision))


def rollback(
    version: AnyVersion = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME|AGO", help="Time to go back to: RFC 3339, or an age: 30m, 2h, 3d."),
    ] = None,
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve an earlier version to all shoppers, pinned. A canary ends.

    Without VERSION, go back to the stable version while a canary runs, else to the version before the one that is
    served. With --to, go back to the newest version that was published at or before that time and is still kept. The
    updater keeps learning and publishing; `unpin` serves its versions again.

    Example: headwater adapters rollback --to 2h --reason "click-through fell"
    """
    if to is not None:
        _require_moment(to, version)
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Rollback

    _change(
        client, name, workers, wait_seconds, Rollback(version=version, to=to, reason=reason, if_revision=if_revision)
    )


def canary(
    percent: Annotated[
        float | None, typer.Option("--percent", max=100.0, metavar="P", help="Share of shoppers in percent; above 0.")
    ] = None,
    version: LatestOr = None,
    auto_rollback: Annotated[
        bool, typer.Option("--auto-rollback", help="End the canary when it is known to be worse.")
    ] = False,
    end: End = False,
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve another version to some shoppers, or end that.

    The stable version is pinned at the one that is served now.

    Example: headwater adapters canary --percent 5 --auto-rollback
    """
    if end == (percent is not None) or (percent is not None and not percent > 0):
        raise typer.BadParameter("give --percent above 0, or --end")
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndCanary, StartCanary

    common: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    start = {"version": version, "percent": percent, "auto_rollback": auto_rollback}
    _change(client, name, workers, wait_seconds, EndCanary(**common) if end else StartCanary(**common, **start))


def shadow(
    version: LatestOr = None,
    end: End = False,
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Score requests with another version as well, or end that.

    Its scores are never answered; workers export how the two versions differ.

    Example: headwater adapters shadow --version 17
    """
    if end and version is not None:
        raise typer.BadParameter("give --version, or --end")
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndShadow, StartShadow

    common: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    _change(client, name, workers, wait_seconds, EndShadow(**common) if end else StartShadow(**common, version=version))


def promote(
    reason: Reason = "",
    if_revision: IfRevision = None,
    workers: Workers = None,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Serve the canary's version to all shoppers, pinned. The canary ends.

    Example: headwater adapters promote
    """
    name, client = open_registry(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Promote

    _change(client, name, workers, wait_seconds, Promote(reason=reason, if_revision=if_revision))


def _require_moment(to: str, version: int | None) -> None:
    """Refuse an invalid time, or a time together with a version, before the registry is contacted."""
    from services.moments import moment_ms

    if version is not None:
        raise typer.BadParameter("give VERSION or --to, not both")
    try:
        moment_ms(to)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from None


def _change(
    client: "RegistryClient", scenario: str, workers: list[str] | None, wait_seconds: float, change: "Change"
) -> None:
    """Change the rollout, print the new one, and wait until all visible workers follow it.

    Raises:
        typer.Exit: a worker does not follow in time, or the rollout was changed again meanwhile; the status is 1.
    """
    from services.operate.adapters.rendering import describe_rollout, moment
    from services.operate.adapters.rollout_wait import wait_for_workers
    from services.registry.changes import Rollback

    rollout = client.change(scenario, change)
    for line in describe_rollout(rollout):
        typer.echo(line)
    if isinstance(change, Rollback) and change.to is not None and rollout.stable_version is not None:
        published_at_ms = client.registry.manifest(scenario, rollout.stable_version).published_at_ms
        typer.echo(f"  version {rollout.stable_version} was published at {moment(published_at_ms)}")
    if wait_seconds > 0 and not wait_for_workers(
        client, rollout, urls=workers or (), wait_seconds=wait_seconds, show=typer.echo
    ):
        raise typer.Exit(1)
