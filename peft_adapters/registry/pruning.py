"""Pruning: removal of the versions and refused candidates that retention does not keep."""

from collections.abc import Callable, Sequence, Set

from peft_adapters.errors import BundleError, VersionNotFoundError
from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.retention import PublishedVersion, Retention
from peft_adapters.registry.version_files import VersionFiles, version_path

REFUSED_NAME = "refused"

ReadManifest = Callable[[str, int], Manifest]


class Pruner:
    """Removes versions; reads each manifest once, because versions never change.

    Args:
        files: files of the versions.
    """

    def __init__(self, files: VersionFiles) -> None:
        self._files = files
        self._published: dict[tuple[str, int], PublishedVersion] = {}

    def prune(
        self,
        scenario: str,
        retention: Retention,
        *,
        versions: Sequence[int],
        named: Set[int],
        read_manifest: ReadManifest,
    ) -> list[int]:
        """Remove what retention does not keep, and return the removed versions.

        Args:
            scenario: the scenario to prune.
            retention: rules for the versions to keep.
            versions: all published versions, oldest first.
            named: versions that the rollout names, which are kept with their chains.
            read_manifest: returns the manifest of a version of a scenario.

        Raises:
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        published = {
            version: fields
            for version in versions
            if (fields := self._published_version(scenario, version, read_manifest)) is not None
        }
        damaged = {version for version in versions[-retention.versions :] if version not in published}
        kept = retention.select(published, named=named) | damaged | (named & set(versions))
        for version in sorted(self._files.names_by_version(scenario), reverse=True):
            # Files beyond the newest version belong to a publication in progress or one that will be repeated.
            if version not in kept and version < versions[-1]:
                self._files.remove(version_path(scenario, version))
                self._published.pop((scenario, version), None)
        refused = f"{scenario}/{REFUSED_NAME}"
        for version in sorted(self._files.names_by_version(refused))[: -retention.versions]:
            self._files.remove(version_path(refused, version))
        return [version for version in versions if version not in kept]

    def _published_version(self, scenario: str, version: int, read_manifest: ReadManifest) -> PublishedVersion | None:
        """Return the fields that retention depends on; None if the manifest is damaged."""
        if (scenario, version) not in self._published:
            try:
                manifest = read_manifest(scenario, version)
            except (BundleError, VersionNotFoundError):
                return None
            size_bytes = sum(entry.bytes for entry in manifest.files.values())
            self._published[scenario, version] = PublishedVersion(
                manifest.builds_on, manifest.published_at_ms, size_bytes
            )
        return self._published[scenario, version]
