"""The commands `headwater adapters ...` that list, compare and verify versions."""

from pathlib import Path
from typing import Annotated

import typer

from services.operate.adapters import rollout_cli
from services.operate.adapters.options import AnyVersion, Version, open_registry
from services.options import Config, LogLevel, RegistryUrl, Scenario, settings_from

adapters = typer.Typer(
    name="adapters",
    help="List published adapters, and change which is served.\n\nExample: headwater adapters list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@adapters.command("list")
def list_adapters(
    json_: AsJson = False,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """List versions and their roles in the rollout, oldest first.

    Example: headwater adapters list --registry-url http://registry:8084
    """
    name, client = open_registry(registry_url, config, None, log_level, scenario)
    from services.operate.adapters.rendering import as_json, describe_rollout, rows, table
    from services.registry.versions import manifests

    rollout = client.registry.rollout(name)
    version_rows = list(rows(manifests(client.registry, name), rollout))
    if json_:
        typer.echo(as_json({"rollout": rollout.model_dump(), "versions": version_rows}))
        return
    for line in [
        *describe_rollout(rollout),
        *(table(version_rows) if version_rows else ["nothing has been published yet"]),
    ]:
        typer.echo(line)


@adapters.command("show")
def show(
    version: AnyVersion = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Show manifest, chain and roles of a version as JSON.

    Without VERSION, the version that is served is shown.

    Example: headwater adapters show 17
    """
    name, client = open_registry(registry_url, config, None, log_level, scenario)
    from services.registry.versions import version_details

    typer.echo(version_details(client.registry, name, version).model_dump_json(indent=2))


@adapters.command("diff")
def diff(
    first: Version,
    second: Version,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Fetch both, and measure how far adapter and heads moved.")
    ] = False,
    json_: AsJson = False,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Compare two versions.

    Example: headwater adapters diff 16 17 --tensors
    """
    name, client = open_registry(registry_url, config, None, log_level, scenario)
    from services.operate.adapters.rendering import differences
    from services.registry.comparison import compare

    comparison = compare(client.registry, name, first, second, tensors=tensors)
    for line in [comparison.model_dump_json(indent=2)] if json_ else differences(comparison):
        typer.echo(line)


@adapters.command("verify")
def verify(
    version: AnyVersion = None,
    public_key: Annotated[
        list[Path] | None,
        typer.Option("--public-key", metavar="FILE", help="Key to trust; default: `signing.public_keys`."),
    ] = None,
    registry_url: RegistryUrl = None,
    config: Config = None,
    log_level: LogLevel = None,
    scenario: Scenario = None,
) -> None:
    """Verify digests and signatures of a version and its chain.

    Every byte of the version and of all versions that it builds on is checked. Without VERSION, the version that is
    served is verified. With --public-key, every link must be signed by that key.

    Example: headwater adapters verify 17 --public-key signing-key.pub.pem
    """
    settings = settings_from(config, None, log_level, scenario, registry={"url": registry_url})
    from peft_adapters.registry.signing import Verifier, load_verifier
    from services.registry.client import open_client
    from services.registry.versions import verify_version

    check = Verifier(public_key, require=True) if public_key else load_verifier(settings.signing)
    for line in verify_version(open_client(settings).registry, settings.scenario, version, check):
        typer.echo(line)


@adapters.command("new-key")
def new_key(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Directory for the two files; created if missing.")],
) -> None:
    """Make a pair of keys for signing adapters.

    `signing.private_key` names the key that the updater signs with, `signing.public_keys` those that workers trust.

    Example: headwater adapters new-key ./keys
    """
    from peft_adapters.registry.signing import generate_key_pair

    private, public = generate_key_pair(out)
    typer.echo(f"private key: {private} (for the updater alone)")
    typer.echo(f"public key:  {public} (for workers)")


for _change in (
    rollout_cli.pin,
    rollout_cli.unpin,
    rollout_cli.rollback,
    rollout_cli.canary,
    rollout_cli.shadow,
    rollout_cli.promote,
):
    adapters.command()(_change)
