"""Verification that a version can be served, before a rollout names it."""

from peft_adapters.errors import BundleError, ChainRefusedError, VersionNotFoundError, VersionNotKeptError
from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import Verifier


def verify_chain(
    registry: AdapterRegistry, scenario: str, version: int, verify: Verifier | None = None
) -> list[Manifest]:
    """Read a version and all that it builds on, and check manifests, sizes, digests and signatures.

    Error texts do not contain the registry's address, so that they can be sent to callers over HTTP.

    Args:
        registry: the registry that holds the version.
        scenario: the scenario of the version.
        version: the version that is to be served.
        verify: checks signatures against trusted keys; None checks none.

    Returns:
        The manifests of the chain, the full version first.

    Raises:
        VersionNotKeptError: the version is not in the registry.
        ChainRefusedError: a link is missing, damaged or not signed as it must be.
        RegistryUnavailableError: the store failed.
    """
    if version not in registry.versions(scenario):
        raise VersionNotKeptError(
            f"no such version: the registry holds no version {version} of scenario {scenario!r}; "
            "`headwater adapters list` shows those that are kept"
        )
    links: list[Manifest] = []
    link: int | None = version
    while link is not None:
        try:
            manifest = registry.manifest(scenario, link)
            if verify is not None:
                verify(manifest)
            registry.verify(manifest)
        except (BundleError, VersionNotFoundError) as error:
            link_name = "" if link == version else f" version {link}, which it builds on:"
            cause = str(error).replace(f"{registry.url}/", "").replace(registry.url, "the registry")
            raise ChainRefusedError(
                f"version {version} of {scenario!r} cannot be served, and nothing was changed:{link_name} {cause}"
            ) from error
        links.append(manifest)
        link = manifest.builds_on
    return links[::-1]
