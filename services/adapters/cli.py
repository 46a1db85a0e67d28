"""The options of `headwater adapters`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.options import Config, Level, LogLevel, RegistryUrl, Scenario, Servers, settings_from

if TYPE_CHECKING:
    from services.adapters.access import Access
    from services.registry.changes import Change

adapters = typer.Typer(
    name="adapters",
    help="Look at published adapters, and change which of them is served.\n\nExample: headwater adapters list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Version = Annotated[int, typer.Argument(min=1, metavar="VERSION", help="As `list` shows it.")]
AnyVersion = Annotated[int | None, typer.Argument(min=1, metavar="VERSION", help="As `list` shows it.")]
LatestOr = Annotated[
    int | None, typer.Option("--version", min=1, metavar="VERSION", help="Which; without it, the latest as it comes.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the rollout.")]
IfRevision = Annotated[
    int | None,
    typer.Option("--if-revision", min=0, metavar="N", help="Only if the rollout is still of revision N."),
]
End = Annotated[bool, typer.Option("--end", help="End it.")]


@adapters.command("list")
def list_adapters(
    json_: AsJson = False,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """List the published versions, oldest first, and what each is to the rollout.

    Example: headwater adapters list --registry-url http://registry:8084
    """
    name, reached = _reached(registry_url, config, None, log_level, scenario)
    from services.adapters.rendering import as_json, rows, table, told
    from services.registry.reading import manifests

    rollout = reached.registry.rollout(name)
    found = list(rows(manifests(reached.registry, name), rollout))
    if json_:
        typer.echo(as_json({"rollout": rollout.model_dump(), "versions": found}))
        return
    for line in [*told(rollout), *(table(found) if found else ["nothing has been published yet"])]:
        typer.echo(line)


@adapters.command("show")
def show(
    version: AnyVersion = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Show all there is of one version, as JSON; without VERSION, of the one that is served.

    Example: headwater adapters show 17
    """
    name, reached = _reached(registry_url, config, None, log_level, scenario)
    from services.registry.reading import shown

    typer.echo(shown(reached.registry, name, version).model_dump_json(indent=2))


@adapters.command("diff")
def diff(
    first: Version,
    second: Version,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Fetch both, and say how far adapter and heads moved.")
    ] = False,
    json_: AsJson = False,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Say what is different between two versions.

    Example: headwater adapters diff 16 17 --tensors
    """
    name, reached = _reached(registry_url, config, None, log_level, scenario)
    from services.adapters.rendering import differences
    from services.registry.comparing import compare

    found = compare(reached.registry, name, first, second, tensors=tensors)
    for line in [found.model_dump_json(indent=2)] if json_ else differences(found):
        typer.echo(line)


@adapters.command("verify")
def verify(
    version: AnyVersion = None,
    public_key: Annotated[
        list[Path] | None,
        typer.Option("--public-key", metavar="FILE", help="A key whose signatures count; else those of the settings."),
    ] = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Check every byte of a version and of all that it builds on, and the signatures; without VERSION, what is served.

    With a key given, a link that it has not signed fails.

    Example: headwater adapters verify 17 --public-key signing-key.pub.pem
    """
    settings = settings_from(config, None, log_level, scenario, registry={"url": registry_url})
    from peft_adapters.signing import Verifier, verifier
    from services.adapters.access import access
    from services.registry.reading import verified

    check = Verifier(public_key, require=True) if public_key else verifier(settings.signing)
    for line in verified(access(settings).registry, settings.scenario, version, check):
        typer.echo(line)


@adapters.command("new-key")
def new_key(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where the two files go; made when missing.")],
) -> None:
    """Make a pair of keys to sign adapters with.

    `signing.private_key` names the one that the updater signs with, `signing.public_keys` those that workers trust.

    Example: headwater adapters new-key ./keys
    """
    from peft_adapters.signing import new_key as make

    private, public = make(out)
    typer.echo(f"private key: {private} (for the updater alone)")
    typer.echo(f"public key:  {public} (for workers)")


@adapters.command("pin")
def pin(
    version: Version,
    reason: Reason = "",
    if_revision: IfRevision = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Answer all from one version until it is unpinned, whatever is published. A canary ends.

    Example: headwater adapters pin 17 --reason "the last one before the campaign"
    """
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Pin

    _change(reached, name, Pin(version=version, reason=reason, if_revision=if_revision))


@adapters.command("unpin")
def unpin(
    reason: Reason = "",
    if_revision: IfRevision = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Follow the latest version again. A canary ends.

    Example: headwater adapters unpin
    """
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Unpin

    _change(reached, name, Unpin(reason=reason, if_revision=if_revision))


@adapters.command("rollback")
def rollback(
    version: AnyVersion = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME|AGO", help="Go back to what was newest then: RFC 3339, or 30m, 2h, 3d."),
    ] = None,
    reason: Reason = "",
    if_revision: IfRevision = None,
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
        _require_past(to, version)
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Rollback

    _change(reached, name, Rollback(version=version, to=to, reason=reason, if_revision=if_revision))


@adapters.command("canary")
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
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndCanary, StartCanary

    asked: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    start = {"version": version, "percent": percent, "auto_rollback": auto_rollback}
    _change(reached, name, EndCanary(**asked) if end else StartCanary(**asked, **start))


@adapters.command("shadow")
def shadow(
    version: LatestOr = None,
    end: End = False,
    reason: Reason = "",
    if_revision: IfRevision = None,
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
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import EndShadow, StartShadow

    asked: dict[str, Any] = {"reason": reason, "if_revision": if_revision}
    _change(reached, name, EndShadow(**asked) if end else StartShadow(**asked, version=version))


@adapters.command("promote")
def promote(
    reason: Reason = "",
    if_revision: IfRevision = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Answer all from the canary's version, pinned; the canary ends.

    Example: headwater adapters promote
    """
    name, reached = _reached(registry_url, config, bootstrap_servers, log_level, scenario)
    from services.registry.changes import Promote

    _change(reached, name, Promote(reason=reason, if_revision=if_revision))


def _require_past(to: str, version: int | None) -> None:
    """Refuse a time to go back to that is none, before anything is asked of the registry."""
    from pydantic import ValidationError

    from services.registry.changes import Rollback

    try:
        Rollback(version=version, to=to)
    except ValidationError as error:
        text = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        raise typer.BadParameter(text, param_hint="--to") from None


def _reached(
    registry_url: str | None,
    config: Any,
    bootstrap_servers: str | None,
    log_level: Level | None,
    scenario: str | None,
) -> "tuple[str, Access]":
    """The scenario's name, and the registry."""
    settings = settings_from(config, bootstrap_servers, log_level, scenario, registry={"url": registry_url})
    from services.adapters.access import access

    return settings.scenario, access(settings)


def _change(reached: "Access", scenario: str, change: "Change") -> None:
    """Make a change and say what holds now."""
    from services.adapters.rendering import told

    for line in told(reached.change(scenario, change)):
        typer.echo(line)
