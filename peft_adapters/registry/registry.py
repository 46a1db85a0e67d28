"""The registry: every published bundle of every scenario, and the latest version of each.

```
<root>/<scenario>/<version:08d>/<files of the bundle>
<root>/<scenario>/refused/<version:08d>/<files of the bundle>     candidates that the gate refused
<root>/<scenario>/LATEST                                          the number of the latest version
<root>/<scenario>/OWNER                                           the updater that may publish
<root>/<scenario>/ROLLOUT.json                                    the versions that are served
```

A version exists once its manifest does, and the manifest is written last. One updater publishes to a scenario, the one
that claimed it last. Any number of readers may read meanwhile; they see a version complete or not at all.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from peft_adapters.errors import BundleFormatError, VersionConflictError, VersionNotFoundError
from peft_adapters.registry.http_deadline import READ_SECONDS
from peft_adapters.registry.latest_pointer import LATEST_LIMIT_BYTES, LATEST_NAME, LatestPointer, dangling_error
from peft_adapters.registry.manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    MAX_VERSION,
    Manifest,
    check_scenario,
    parse_manifest,
)
from peft_adapters.registry.ownership import Owner, OwnerFile
from peft_adapters.registry.pruning import REFUSED_NAME, Pruner
from peft_adapters.registry.retention import Retention
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.rollout_file import RolloutFile
from peft_adapters.registry.store_access import StoreAccess
from peft_adapters.registry.stores import Store, open_store
from peft_adapters.registry.version_files import VersionFiles, version_path

log = structlog.get_logger(__name__)


class AdapterRegistry:
    """Publishes, lists, fetches and prunes the bundles under one root.

    Args:
        url: root of the registry: a path, any fsspec address (`s3://`, `memory://`), or the `/v1/files` of a registry
            process, which is read-only.
        store: a store to use instead of the one that `url` names.
        verify: called with each manifest that is read; raises `BundleSignatureError` if the signature is not accepted.
        api_key: API key of scope `read` for a registry process.
        read_seconds: deadline of one read over HTTP as a whole.
    """

    def __init__(
        self,
        url: str,
        *,
        store: Store | None = None,
        verify: Callable[[Manifest], object] | None = None,
        api_key: str | None = None,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.url, self._verify_signature = url, verify
        self._access = StoreAccess(url, store or open_store(url, api_key=api_key, read_seconds=read_seconds))
        self._files, self._latest = VersionFiles(self._access), LatestPointer(self._access)
        self._owner_file, self._rollout_file = OwnerFile(self._access), RolloutFile(self._access)
        self._pruner = Pruner(self._files)

    def check(self) -> None:
        """Return once the store answers, even if it holds nothing yet.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors("be reached"), suppress(FileNotFoundError):
            self._access.store.read(f"check/{LATEST_NAME}", limit_bytes=LATEST_LIMIT_BYTES)

    # ---- publishing

    def claim(self, scenario: str, owner: Owner) -> None:
        """Make `owner` the only updater that may publish to a scenario; all earlier owners are fenced.

        Raises:
            AlreadyRunningError: an updater with other checkpoints has just published to it.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        self._owner_file.claim(scenario, owner, latest=self.latest)

    def next_version(self, scenario: str) -> int:
        """Return a version number that no file exists under, not even of an interrupted publication.

        Raises:
            VersionConflictError: the largest number is taken.
            RegistryUnavailableError: the store failed.
        """
        version = 1 + max(self._files.names_by_version(check_scenario(scenario)), default=0)
        if version > MAX_VERSION:
            raise VersionConflictError(
                f"{self.url} holds version {version - 1} of scenario {scenario!r}, and no version may be above "
                f"{MAX_VERSION}; remove that directory if it was not published, or publish to another registry"
            )
        return version

    def publish(self, directory: Path, manifest: Manifest, *, owner: Owner | None = None) -> None:
        """Make a bundle the latest version of its scenario.

        1. Upload the files. 2. Read them back and verify them. 3. Write the manifest: the version exists from here on.
        4. Advance LATEST.

        If the process is killed in between, publishing again completes the work; earlier versions are not affected.
        Publishing a version again with the same digest changes nothing, and LATEST never goes back. The owner is
        checked before steps 3 and 4, so a fenced updater makes nothing visible.

        Args:
            directory: directory of the bundle.
            manifest: manifest of the bundle.
            owner: the publishing updater, as it claimed the scenario; None if no other updater can publish.

        Raises:
            FencedError: another updater has claimed the scenario.
            VersionConflictError: the version exists with another digest.
            VersionNotFoundError: the parent of a delta is not in the registry.
            BundleDigestError: the store returns other bytes than the manifest records.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed, or has lost its files.
        """
        scenario, version = manifest.scenario, manifest.version
        if not self._is_published(manifest):
            self._check_parent(manifest)
            self._files.write(
                version_path(scenario, version),
                directory,
                manifest,
                before_manifest=lambda: self._owner_file.require(scenario, owner),
            )
        latest = self._latest.read(scenario)
        if latest is None or latest < version:
            self._owner_file.require(scenario, owner)
            self._latest.advance(scenario, version)
        log.info("adapter_published", scenario=scenario, version=version, digest=manifest.digest)

    def keep_refused(self, directory: Path, manifest: Manifest) -> None:
        """Store a candidate that the gate refused, for inspection; it never becomes a version.

        Raises:
            BundleDigestError: the store returns other bytes than the manifest records.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        path = version_path(f"{manifest.scenario}/{REFUSED_NAME}", manifest.version)
        with self._access.errors(f"keep refused candidate {path}"):
            self._access.store.remove(path)
        self._files.write(path, directory, manifest, before_manifest=lambda: None)

    def prune(self, scenario: str, retention: Retention) -> list[int]:
        """Remove the versions that retention does not keep, and return their numbers.

        Versions that the rollout names are kept with their chains. Of refused candidates the newest
        `retention.versions` are kept. Deltas are removed before the versions they build on, so that every version left
        can be built even if pruning is interrupted. A version with a damaged manifest is kept while it is among the
        newest `retention.versions`, because it may still be repaired.

        Args:
            scenario: the scenario to prune.
            retention: rules for the versions to keep.

        Raises:
            RolloutFormatError: the rollout cannot be read; nothing is removed.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        versions, named = self.versions(scenario), self.rollout(scenario).versions
        return self._pruner.prune(scenario, retention, versions=versions, named=named, read_manifest=self.manifest)

    # ---- reading

    def latest(self, scenario: str) -> Manifest | None:
        """Return the manifest of the latest version; None if nothing has been published.

        Raises:
            ScenarioNameError: the name is not valid.
            VersionNotKeptError: LATEST names a version that the registry does not hold.
            BundleError: LATEST or the manifest is damaged.
            RegistryUnavailableError: the store failed.
        """
        version = self._latest.read(scenario)
        while version is not None:
            try:
                return self.manifest(scenario, version)
            except VersionNotFoundError:
                # The version may have been superseded and pruned between the two reads; if not, it is missing.
                missing, version = version, self._latest.read(scenario)
                if version == missing:
                    raise dangling_error(scenario, version, self.versions(scenario)) from None
        return None

    def explain_absence(self, scenario: str) -> str:
        """Explain in one sentence why a scenario has no latest version: the registry is missing, empty or damaged.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        return self._latest.explain_absence(scenario, self.versions)

    def manifest(self, scenario: str, version: int) -> Manifest:
        """Return the manifest of one version.

        Raises:
            VersionNotFoundError: the registry holds no such version.
            BundleError: the manifest is damaged, or belongs to another version.
            RegistryUnavailableError: the store failed.
        """
        path = f"{version_path(check_scenario(scenario), version)}/{MANIFEST_NAME}"
        data = self._access.read(path, limit_bytes=MANIFEST_LIMIT_BYTES)
        if data is None:
            raise VersionNotFoundError(
                f"{self.url} holds no version {version} of scenario {scenario!r}; "
                "`headwater adapters list` shows those that are kept"
            )
        manifest = parse_manifest(data, source=f"{self.url}/{path}")
        if (manifest.scenario, manifest.version) != (scenario, version):
            raise BundleFormatError(
                f"{self.url}/{path}: expected version {version} of {scenario!r}, found version {manifest.version} of "
                f"{manifest.scenario!r}; the file was moved, publish it under its own name"
            )
        if self._verify_signature is not None:
            self._verify_signature(manifest)
        return manifest

    def versions(self, scenario: str) -> list[int]:
        """Return the numbers of all published versions, oldest first.

        Raises:
            ScenarioNameError: the name is not valid.
            RegistryUnavailableError: the store failed.
        """
        names = self._files.names_by_version(check_scenario(scenario))
        return sorted(version for version, files in names.items() if MANIFEST_NAME in files)

    def chain(self, scenario: str, version: int) -> list[int]:
        """Return the versions needed to build `version`: its last full version, then each delta up to it.

        Raises:
            VersionNotFoundError: the version, or a link of its chain, is missing.
            BundleError: a manifest is damaged.
            RegistryUnavailableError: the store failed.
        """
        links = [self.manifest(scenario, version)]
        while (parent := links[-1].builds_on) is not None:
            links.append(self.manifest(scenario, parent))
        return [link.version for link in reversed(links)]

    def fetch(self, scenario: str, version: int, destination: Path) -> Path:
        """Download a version to `<destination>/<scenario>/<version:08d>` and return that directory.

        The directory appears complete and verified, or not at all. A valid copy that exists already is used as it is.

        Raises:
            VersionNotFoundError: the registry holds no such version.
            BundleError: the downloaded bytes are not those of the manifest.
            RegistryUnavailableError: the store failed.
            OSError: the local disk failed.
        """
        return self._files.fetch(self.manifest(scenario, version), destination)

    def verify(self, manifest: Manifest) -> None:
        """Read every file of a version and compare it with the manifest.

        Raises:
            VersionNotFoundError: a file is gone.
            BundleSizeError: a file is too short or too long.
            BundleDigestError: the digest of a file differs.
            RegistryUnavailableError: the store failed.
        """
        for name, entry in manifest.files.items():
            self._files.verify(f"{version_path(manifest.scenario, manifest.version)}/{name}", entry)

    def chunks(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        """Yield the bytes of one file of a version in chunks, unverified.

        Args:
            manifest: manifest of the version.
            name: name of the file.

        Raises:
            VersionNotFoundError: the version has no such file.
            BundleSizeError: the file is too short or too long.
            RegistryUnavailableError: the store failed.
        """
        path = f"{version_path(manifest.scenario, manifest.version)}/{name}"
        entry = manifest.files.get(name)
        if entry is None:
            raise VersionNotFoundError(f"{path} is not a file of this version; it has {', '.join(manifest.files)}")
        self._files.require_size(path, entry)
        yield from self._files.chunks(path, limit_bytes=entry.bytes)

    # ---- rollout

    def rollout(self, scenario: str) -> Rollout:
        """Return the rollout of a scenario; if none is stored, one of revision 0 that follows the latest version.

        Raises:
            ScenarioNameError: the name is not valid.
            RolloutFormatError: the stored document is not a rollout.
            RegistryUnavailableError: the store failed.
        """
        return self._rollout_file.read(scenario)

    def set_rollout(self, rollout: Rollout) -> None:
        """Replace the rollout of a scenario by its next revision; see `RolloutFile.write`.

        Args:
            rollout: the new document, one revision after the stored one.

        Raises:
            RolloutConflictError: another process has changed the rollout meanwhile.
            VersionNotFoundError: a version that it newly names, or a link of its chain, is missing.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        self._rollout_file.write(rollout, check_version=self.chain)

    def _is_published(self, manifest: Manifest) -> bool:
        with suppress(VersionNotFoundError):
            published = self.manifest(manifest.scenario, manifest.version)
            if published.digest == manifest.digest:
                return True
            raise VersionConflictError(
                f"{self.url} already holds version {manifest.version} of scenario {manifest.scenario!r} with digest "
                f"{published.digest}, not {manifest.digest}; publish under a new version"
            )
        return False

    def _check_parent(self, manifest: Manifest) -> None:
        if manifest.builds_on is None:
            return
        parent = self.manifest(manifest.scenario, manifest.builds_on)
        if parent.snapshot != manifest.snapshot:
            raise BundleFormatError(
                f"version {manifest.version} of {manifest.scenario!r}: expected `snapshot` {parent.snapshot} as its "
                f"parent {parent.version} has, found {manifest.snapshot}; build the delta on that chain"
            )
