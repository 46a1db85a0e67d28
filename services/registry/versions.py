"""Manifests, roles, details and verification of published versions."""

from collections.abc import Iterator
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from peft_adapters.errors import VersionNotFoundError
from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import Verifier


def manifests(registry: AdapterRegistry, scenario: str) -> Iterator[Manifest]:
    """Yield the manifests of all versions, oldest first.

    Raises:
        BundleError: a manifest is damaged.
        RegistryUnavailableError: the store failed.
    """
    for version in registry.versions(scenario):
        with suppress(VersionNotFoundError):  # pruned since the listing
            yield registry.manifest(scenario, version)


def roles(version: int, rollout: Rollout, *, latest: int) -> list[str]:
    """Return the roles of a version: `latest`, `stable`, `canary 5%`, `shadow`."""
    names = ["latest"] if version == latest else []
    if version == rollout.stable_or(latest):
        names.append("stable")
    if rollout.canary is not None and version == (rollout.canary.version or latest) and "stable" not in names:
        names.append(f"canary {rollout.canary.percent:g}%")
    if rollout.shadow is not None and version == (rollout.shadow.version or latest) and "stable" not in names:
        names.append("shadow")
    return names


class VersionDetails(BaseModel):
    """Manifest, chain and roles of a version.

    Attributes:
        roles: its roles in the rollout.
        chain: the versions that are needed to build it.
        manifest: its own manifest.
    """

    model_config = ConfigDict(frozen=True)

    roles: list[str]
    chain: list[int]
    manifest: Manifest


def version_details(registry: AdapterRegistry, scenario: str, version: int | None) -> VersionDetails:
    """Return manifest, chain and roles of a version.

    Args:
        registry: the registry that holds it.
        scenario: the scenario of the version.
        version: the version's number; None is the stable version.

    Raises:
        VersionNotFoundError: there is no such version, or no version at all.
        BundleError: the version is damaged.
        RegistryUnavailableError: the store failed.
    """
    rollout, latest = registry.rollout(scenario), registry.latest(scenario)
    if latest is None:
        raise VersionNotFoundError(f"nothing has been published for scenario {scenario!r} yet")
    manifest = registry.manifest(scenario, version or rollout.stable_or(latest.version))
    return VersionDetails(
        roles=roles(manifest.version, rollout, latest=latest.version),
        chain=registry.chain(scenario, manifest.version),
        manifest=manifest,
    )


def verify_version(registry: AdapterRegistry, scenario: str, version: int | None, verify: Verifier | None) -> list[str]:
    """Verify every byte of a version and its chain, and return a line for each link with its signature.

    Args:
        registry: the registry that holds it.
        scenario: the scenario of the version.
        version: the version's number; None is the stable version.
        verify: checks signatures against trusted keys; None checks none.

    Raises:
        VersionNotFoundError: a link is missing, or there is no version at all.
        BundleError: a link is damaged, or not signed as it must be.
        RegistryUnavailableError: the store failed.
    """
    details = version_details(registry, scenario, version)
    lines = []
    for link in details.chain:
        manifest = registry.manifest(scenario, link)
        if verify is not None:
            verify(manifest)
        registry.verify(manifest)
        lines.append(
            f"version {link}: {len(manifest.files)} files match their digests; {signature_state(manifest, verify)}"
        )
    return lines


def signature_state(manifest: Manifest, verify: Verifier | None) -> str:
    """Return the state of a manifest's signature in a few words."""
    if manifest.signature is None:
        return "unsigned"
    by = f"signed by {manifest.signature.key_id}"
    return f"{by}, not verified" if verify is None else f"{by}, {verify.signature_state(manifest)}"
