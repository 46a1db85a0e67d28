"""What a registry says of its versions."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from peft_adapters.errors import VersionNotFoundError
from peft_adapters.manifest import Manifest
from peft_adapters.registry import AdapterRegistry
from services.adapters.rendering import roles


def manifests(registry: AdapterRegistry, scenario: str) -> Iterator[Manifest]:
    """Manifests of all versions, oldest first.

    Raises:
        BundleError: one is damaged.
        RegistryUnavailableError: the store failed.
    """
    for version in registry.versions(scenario):
        with suppress(VersionNotFoundError):  # pruned since the listing
            yield registry.manifest(scenario, version)


def shown(registry: AdapterRegistry, scenario: str, version: int | None) -> dict[str, Any]:
    """All there is of a version, as JSON can hold it.

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
    return {
        "is": roles(manifest.version, rollout, latest=latest.version),
        "chain": registry.chain(scenario, manifest.version),
        "manifest": manifest.model_dump(mode="json"),
    }
