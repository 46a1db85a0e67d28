"""The options of `headwater adapters`."""

from pathlib import Path
from typing import Annotated

import typer

from services.operate.adapters import change_cli
from services.operate.adapters.options import AnyVersion, Version
from services.operate.adapters.options import reached as reached_by
from services.options import Config, LogLevel, RegistryUrl, Scenario, settings_from

adapters = typer.Typer(
    name="adapters",
    help="List published adapters, and change which is served.\n\nExample: headwater adapters list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]


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
    name, reached = reached_by(registry_url, config, None, log_level, scenario)
    from services.operate.adapters.rendering import as_json, rows, table, told
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
    name, reached = reached_by(registry_url, config, None, log_level, scenario)
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
    name, reached = reached_by(registry_url, config, None, log_level, scenario)
    from services.operate.adapters.rendering import differences
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
    from peft_adapters.registry.signing import Verifier, load_verifier
    from services.registry.client import access
    from services.registry.reading import verified

    check = Verifier(public_key, require=True) if public_key else load_verifier(settings.signing)
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
    from peft_adapters.registry.signing import generate_key_pair

    private, public = generate_key_pair(out)
    typer.echo(f"private key: {private} (for the updater alone)")
    typer.echo(f"public key:  {public} (for workers)")


for _change in (
    change_cli.pin,
    change_cli.unpin,
    change_cli.rollback,
    change_cli.canary,
    change_cli.shadow,
    change_cli.promote,
):
    adapters.command()(_change)
