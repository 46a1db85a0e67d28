"""What a registry says of its versions, and whether it is true."""

from collections.abc import Iterator
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from peft_adapters.errors import VersionNotFoundError
from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import Verifier


def manifests(registry: AdapterRegistry, scenario: str) -> Iterator[Manifest]:
    """Manifests of all versions, oldest first.

    Raises:
        BundleError: one is damaged.
        RegistryUnavailableError: the store failed.
    """
    for version in registry.versions(scenario):
        with suppress(VersionNotFoundError):  # pruned since the listing
            yield registry.manifest(scenario, version)


def roles(version: int, rollout: Rollout, *, latest: int) -> list[str]:
    """What a version is: `latest`, `stable`, `canary 5%`, `shadow`."""
    found = ["latest"] if version == latest else []
    if version == rollout.stable_or(latest):
        found.append("stable")
    if rollout.canary is not None and version == (rollout.canary.version or latest) and "stable" not in found:
        found.append(f"canary {rollout.canary.percent:g}%")
    if rollout.shadow is not None and version == (rollout.shadow.version or latest) and "stable" not in found:
        found.append("shadow")
    return found


class Shown(BaseModel):
    """All there is of a version.

    Attributes:
        roles: what it is to the rollout.
        chain: the versions that it takes to build it.
        manifest: its own.
    """

    model_config = ConfigDict(frozen=True)

    roles: list[str]
    chain: list[int]
    manifest: Manifest


def shown(registry: AdapterRegistry, scenario: str, version: int | None) -> Shown:
    """All there is of a version.

    Args:
        registry: where it is.
        scenario: of which ranking.
        version: which; None is the stable one.

    Raises:
        VersionNotFoundError: it is not there, or nothing is.
        BundleError: it is damaged.
        RegistryUnavailableError: the store failed.
    """
    rollout, latest = registry.rollout(scenario), registry.latest(scenario)
    if latest is None:
        raise VersionNotFoundError(f"nothing has been published for scenario {scenario!r} yet")
    manifest = registry.manifest(scenario, version or rollout.stable_or(latest.version))
    return Shown(
        roles=roles(manifest.version, rollout, latest=latest.version),
        chain=registry.chain(scenario, manifest.version),
        manifest=manifest,
    )


def verified(registry: AdapterRegistry, scenario: str, version: int | None, verify: Verifier | None) -> list[str]:
    """Read a version with all that it builds on, check every byte, and say how each link is signed.

    Args:
        registry: where it is.
        scenario: of which ranking.
        version: which; None is the stable one.
        verify: knows whose signatures count; None takes those who say nothing.

    Raises:
        VersionNotFoundError: a link is not there, or nothing is.
        BundleError: a link is damaged, or not signed as it must be.
        RegistryUnavailableError: the store failed.
    """
    wanted = shown(registry, scenario, version)
    lines = []
    for link in wanted.chain:
        manifest = registry.manifest(scenario, link)
        if verify is not None:
            verify(manifest)
        registry.verify(manifest)
        lines.append(f"version {link}: {len(manifest.files)} files as digested; {signature_state(manifest, verify)}")
    return lines


def signature_state(manifest: Manifest, verify: Verifier | None) -> str:
    """How a manifest is signed, in a few words."""
    if manifest.signature is None:
        return "unsigned"
    by = f"signed by {manifest.signature.key_id}"
    return f"{by}, not verified" if verify is None else f"{by}, {verify.signature_state(manifest)}"
