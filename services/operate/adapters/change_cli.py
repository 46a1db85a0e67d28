"""The commands of `headwater adapters` that change what is served."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operate.adapters.options import AnyVersion, Version, reached
from services.options import Config, LogLevel, RegistryUrl, Scenario, Servers, utf8_text

if TYPE_CHECKING:
    from services.registry.changes import Change
    from services.registry.client import RegistryClient

WAIT_SECONDS = 30.0

LatestOr = Annotated[
    int | None, typer.Option("--version", min=1, metavar="VERSION", help="Which; without it, the latest as it comes.")
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", callback=utf8_text, help="Why; it stays in the rollout.")
]
IfRevision = Annotated[
    int | None,
    typer.Option("--if-revision", min=0, metavar="N", help="Only if the rollout is still of revision N."),
]
End = Annotated[bool, typer.Option("--end", help="End it.")]
Workers = Annotated[
    list[str] | None,
    typer.Option("--worker", metavar="URL", help="Wait for this scorer, too: http://HOST:PORT; repeatable."),
]
WaitSeconds = Annotated[
    float,
    typer.Option("--wait-seconds", min=0, max=3600, metavar="S", help="For workers to obey; 0 does not wait for any."),
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
    """Answer all from one version until it is unpinned, whatever is published. A canary ends.

    Example: headwater adapters pin 17 --reason "the last one before the campaign"
    """
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Pin

    _change(access, name, workers, wait_seconds, Pin(version=version, reason=reason, if_revision=if_revision))


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
    """Follow the latest version again. A canary ends.

    Example: headwater adapters unpin
    """
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Unpin

    _change(access, name, workers, wait_seconds, Unpin(reason=reason, if_revision=if_revision))


def rollback(
    version: AnyVersion = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME|AGO", help="Go back to what was newest then: RFC 3339, or 30m, 2h, 3d."),
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
    """Answer all from an earlier version, and stay there. A canary ends.

    Without VERSION it is the stable one while a canary runs, else the one before that which is served. With --to it is
    the newest version that was published at or before that time and is still kept. The updater goes on learning and
    publishing; `unpin` follows it again.

    Example: headwater adapters rollback --to 2h --reason "click-through fell"
    """
    if to is not None:
        _require_moment(to, version)
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Rollback

    _change(
        access, name, workers, wait_seconds, Rollback(version=version, to=to, reason=reason, if_revision=if_revision)
    )


def canary(
    percent: Annotated[
        float | None, typer.Option("--percent", max=100.0, metavar="P", help="Of shoppers; above 0.")
    ] = None,
    version: LatestOr = None,
    auto_rollback: Annotated[
        bool, typer.Option("--auto-rollback", help="End it by itself when it is known to be worse.")
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
    """Answer some shoppers from another version; the stable one is held at what it is now.

    Example: headwater adapters canary --percent 5 --auto-rollback
    """
    if end == (percent is not None) or (percent is not None and not percent > 0):
        raise typer.BadParameter("give --percent above 0, or --end")
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndCanary, StartCanary

    asked: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    start = {"version": version, "percent": percent, "auto_rollback": auto_rollback}
    _change(access, name, workers, wait_seconds, EndCanary(**asked) if end else StartCanary(**asked, **start))


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
    """Have another version score too without ever answering; workers export how the two differ.

    Example: headwater adapters shadow --version 17
    """
    if end and version is not None:
        raise typer.BadParameter("give --version, or --end")
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndShadow, StartShadow

    asked: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    _change(access, name, workers, wait_seconds, EndShadow(**asked) if end else StartShadow(**asked, version=version))


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
    """Answer all from the canary's version, pinned; the canary ends.

    Example: headwater adapters promote
    """
    name, access = reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Promote

    _change(access, name, workers, wait_seconds, Promote(reason=reason, if_revision=if_revision))


def _require_moment(to: str, version: int | None) -> None:
    """Refuse a time that is none, or one beside a version, before anything is asked of the registry."""
    from services.moments import moment_ms

    if version is not None:
        raise typer.BadParameter("give VERSION or --to, not both")
    try:
        moment_ms(to)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from None


def _change(
    access: "RegistryClient", scenario: str, workers: list[str] | None, wait_seconds: float, change: "Change"
) -> None:
    """Make a change, print what holds now, and wait until the workers that can be seen obey.

    Raises:
        typer.Exit: A worker does not obey in time, or the rollout was changed again meanwhile; the status is 1.
    """
    from services.operate.adapters.obeying import wait_for_workers
    from services.operate.adapters.rendering import moment, told
    from services.registry.changes import Rollback

    rollout = access.change(scenario, change)
    for line in told(rollout):
        typer.echo(line)
    if isinstance(change, Rollback) and change.to is not None and rollout.stable_version is not None:
        published_at_ms = access.registry.manifest(scenario, rollout.stable_version).published_at_ms
        typer.echo(f"  version {rollout.stable_version} was published at {moment(published_at_ms)}")
    if wait_seconds > 0 and not wait_for_workers(
        access, rollout, urls=workers or (), wait_seconds=wait_seconds, show=typer.echo
    ):
        raise typer.Exit(1)
