"""The registry: every published bundle of every scenario, and which one is the latest.

```
<root>/<scenario>/<version:08d>/<files of the bundle>
<root>/<scenario>/refused/<version:08d>/<files of the bundle>     candidates the gate refused
<root>/<scenario>/LATEST                                          one version number
<root>/<scenario>/OWNER                                           who may publish
<root>/<scenario>/ROLLOUT.json                                    which version is served
```

A version exists once its manifest does, and the manifest is written last. One updater publishes to a scenario, the one
that claimed it last; any number of readers may look on, and see a version whole or not at all.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from peft_adapters.durable import path_in_errors, sync_directory
from peft_adapters.errors import (
    AlreadyRunningError,
    BundleError,
    BundleFormatError,
    FencedError,
    LatestFormatError,
    RegistryUnavailableError,
    RolloutConflictError,
    RolloutFormatError,
    VersionConflictError,
    VersionNotFoundError,
    VersionNotKeptError,
)
from peft_adapters.registry.http_deadline import READ_SECONDS
from peft_adapters.registry.manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    MAX_VERSION,
    Manifest,
    check_scenario,
    manifest_bytes,
    parse_manifest,
    verify_copy,
)
from peft_adapters.registry.retention import PublishedVersion, Retention
from peft_adapters.registry.rollout import ROLLOUT_LIMIT_BYTES, ROLLOUT_NAME, Rollout, parse_rollout, rollout_bytes
from peft_adapters.registry.stores import Store, open_store
from peft_adapters.registry.version_files import VersionFiles

LATEST_NAME = "LATEST"
OWNER_NAME = "OWNER"
CLAIM_SECONDS = 30.0  # after its last publication for so long, a scenario cannot be claimed from elsewhere
REFUSED_NAME = "refused"
LATEST_LIMIT_BYTES = 32
OWNER_LIMIT_BYTES = 1_024

log = structlog.get_logger(__name__)


class Owner(BaseModel):
    """Who may publish to a scenario.

    Attributes:
        lineage: the same for every start that goes on from the same checkpoints.
        epoch: the number of the start; it only rises within a lineage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lineage: str
    epoch: int


class AdapterRegistry:
    """Publishes, lists, fetches and prunes the bundles under one root.

    Args:
        url: Root of the registry: a path, any fsspec address (`s3://`, `memory://`), or the `/v1/files` of a registry
            process, which is read-only.
        store: Takes the place of what `url` names; for callers that bring a store of their own.
        verify: Raises `BundleSignatureError` for a manifest not signed as it must be; each that is read goes there.
        api_key: Shown to a registry process; of scope `read`.
        read_seconds: Deadline of one read over HTTP as a whole.
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
        self._store = store or open_store(url, api_key=api_key, read_seconds=read_seconds)
        self._files = VersionFiles(url, self._store)
        self._seen: dict[tuple[str, int], PublishedVersion] = {}  # versions that `prune` has read; they never change

    def check(self) -> None:
        """Return when the store answers, be it that nothing is there yet.

        Raises:
            RegistryUnavailableError: The store failed.
        """
        with self._files.errors("be reached"), suppress(FileNotFoundError):
            self._store.read(f"check/{LATEST_NAME}", limit_bytes=LATEST_LIMIT_BYTES)

    def claim(self, scenario: str, owner: Owner) -> None:
        """Make `owner` the only one who may publish to a scenario: all before are fenced.

        Raises:
            AlreadyRunningError: an updater with other checkpoints has just published to it.
            RegistryReadOnlyError: The registry is open over HTTP.
            RegistryUnavailableError: The store failed.
        """
        before = self._owner(scenario)
        latest = self.latest(scenario)
        if before is not None and before.lineage != owner.lineage and latest is not None:
            ago_seconds = time.time() - latest.published_at_ms / 1_000
            if ago_seconds < CLAIM_SECONDS:
                raise AlreadyRunningError(
                    f"scenario {scenario!r} in {self.url} got version {latest.version} {ago_seconds:.0f} s ago from an "
                    "updater with other checkpoints; stop that one, or give this one another scenario or registry"
                )
        with self._files.errors(f"claim {scenario!r}"):
            self._store.write(f"{scenario}/{OWNER_NAME}", owner.model_dump_json().encode())

    def next_version(self, scenario: str) -> int:
        """A version number that nothing has been written under, not even by a publication that was cut short.

        Raises:
            VersionConflictError: The largest number is taken.
            RegistryUnavailableError: The store failed.
        """
        version = 1 + max(self._files.by_version(check_scenario(scenario)), default=0)
        if version > MAX_VERSION:
            raise VersionConflictError(
                f"{self.url} holds version {version - 1} of scenario {scenario!r}, and no version may be above "
                f"{MAX_VERSION}; remove that directory if it was not published, or publish to another registry"
            )
        return version

    def publish(self, directory: Path, manifest: Manifest, *, owner: Owner | None = None) -> None:
        """Make a bundle the latest version of its scenario.

        1. Upload the files. 2. Read them back and verify them. 3. Write the manifest: now the version exists.
        4. Advance LATEST. Killed in between, publishing again ends the work; what was published before stays as it was.
        Publishing a version again with the same digest changes nothing; LATEST never goes back. Before 3 and 4 the
        owner is looked up: one that has been fenced meanwhile makes nothing visible.

        Args:
            directory: The bundle.
            manifest: Its manifest.
            owner: Who publishes, as `claim` was told; None where nobody else can.

        Raises:
            FencedError: Another owner has claimed the scenario.
            VersionConflictError: The version exists with another digest.
            VersionNotFoundError: A delta's parent is not here.
            BundleDigestError: What the store gives back is not what the manifest says.
            RegistryReadOnlyError: The registry is open over HTTP.
            RegistryUnavailableError: The store failed, or has lost what was there.
        """
        scenario, version = manifest.scenario, manifest.version
        if not self._is_published(manifest):
            self._check_parent(manifest)
            self._files.put(
                self._version_path(scenario, version),
                directory,
                manifest,
                before_manifest=lambda: self._check_owner(scenario, owner),
            )
        latest = self._latest_version(scenario)
        if latest is None or latest < version:
            self._check_owner(scenario, owner)
            with self._files.errors(f"advance {LATEST_NAME} of {scenario!r} to {version}"):
                self._store.write(f"{scenario}/{LATEST_NAME}", f"{version}\n".encode())
        log.info("adapter_published", scenario=scenario, version=version, digest=manifest.digest)

    def keep_refused(self, directory: Path, manifest: Manifest) -> None:
        """Keep a candidate the gate refused, for people to look into; it never becomes a version.

        Raises:
            BundleDigestError: What the store gives back is not what the manifest says.
            RegistryReadOnlyError: The registry is open over HTTP.
            RegistryUnavailableError: The store failed.
        """
        path = self._version_path(f"{manifest.scenario}/{REFUSED_NAME}", manifest.version)
        with self._files.errors(f"keep refused candidate {path}"):
            self._store.remove(path)
        self._files.put(path, directory, manifest, before_manifest=lambda: None)

    def latest(self, scenario: str) -> Manifest | None:
        """Manifest of the latest version, None when nothing has been published.

        Raises:
            ScenarioNameError: The scenario's name is out of the question.
            VersionNotKeptError: LATEST names a version that is not there.
            BundleError: LATEST or the manifest is damaged.
            RegistryUnavailableError: The store failed.
        """
        version = self._latest_version(scenario)
        while version is not None:
            try:
                return self.manifest(scenario, version)
            except VersionNotFoundError:
                # Overtaken and pruned between the two reads; else it is missing indeed.
                overtaken, version = version, self._latest_version(scenario)
                if version == overtaken:
                    raise self._latest_not_kept(scenario, version) from None
        return None

    def _latest_not_kept(self, scenario: str, version: int) -> VersionNotKeptError:
        kept = self.versions(scenario)
        remedy = f", or write the number of the newest, {kept[-1]}, into {scenario}/{LATEST_NAME}" if kept else ""
        return VersionNotKeptError(
            f"{scenario}/{LATEST_NAME} names version {version}, which the registry does not hold; put that version "
            f"back{remedy}"
        )

    def explain_absence(self, scenario: str) -> str:
        """Explain in one sentence why a scenario has no latest version: the registry is missing, empty or damaged.

        Raises:
            RegistryUnavailableError: The store failed.
        """
        root = self._store.missing_root()
        if root is not None:
            return (
                f"the registry is missing: the directory {root} does not exist; check the address and the mount, or "
                "start an updater that publishes to it"
            )
        if versions := self.versions(scenario):
            return (
                f"the registry is damaged: {self.url} holds {len(versions)} versions of scenario {scenario!r} and no "
                f"{LATEST_NAME}; write the number of the newest, {versions[-1]}, into {scenario}/{LATEST_NAME}"
            )
        return (
            f"the registry is empty: {self.url} holds no version of scenario {scenario!r}; check that an updater "
            "publishes this scenario to it"
        )

    def manifest(self, scenario: str, version: int) -> Manifest:
        """Manifest of one version.

        Raises:
            VersionNotFoundError: There is no such version.
            BundleError: The manifest is damaged, or another's.
            RegistryUnavailableError: The store failed.
        """
        path = f"{self._version_path(check_scenario(scenario), version)}/{MANIFEST_NAME}"
        with self._files.errors(f"read {path}"):
            try:
                data = self._store.read(path, limit_bytes=MANIFEST_LIMIT_BYTES)
            except FileNotFoundError as error:
                raise VersionNotFoundError(
                    f"{self.url} holds no version {version} of scenario {scenario!r}; "
                    "`headwater adapters list` shows those that are kept"
                ) from error
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
        """All published versions, oldest first.

        Raises:
            ScenarioNameError: The scenario's name is out of the question.
            RegistryUnavailableError: The store failed.
        """
        files = self._files.by_version(check_scenario(scenario))
        return sorted(version for version, names in files.items() if MANIFEST_NAME in names)

    def chain(self, scenario: str, version: int) -> list[int]:
        """What it takes to build `version`: its last full version, then each delta up to it.

        Raises:
            VersionNotFoundError: The version, or a link of its chain, is missing.
            BundleError: A manifest is damaged.
            RegistryUnavailableError: The store failed.
        """
        links = [self.manifest(scenario, version)]
        while (parent := links[-1].builds_on) is not None:
            links.append(self.manifest(scenario, parent))
        return [link.version for link in reversed(links)]

    def rollout(self, scenario: str) -> Rollout:
        """Which version is served; where nothing was said, the one that follows the latest, of revision 0.

        Raises:
            ScenarioNameError: The scenario's name is out of the question.
            RolloutFormatError: What lies there is no rollout.
            RegistryUnavailableError: The store failed.
        """
        path = f"{check_scenario(scenario)}/{ROLLOUT_NAME}"
        with self._files.errors(f"read {path}"):
            try:
                data = self._store.read(path, limit_bytes=ROLLOUT_LIMIT_BYTES)
            except FileNotFoundError:
                return Rollout(scenario=scenario)
            except BundleFormatError as error:  # of a registry process that cannot use the file
                raise RolloutFormatError(str(error)) from error
        return parse_rollout(data, scenario=scenario, source=f"{self.url}/{path}")

    def set_rollout(self, rollout: Rollout) -> None:
        """Say which version is served.

        The revision is looked up just before and what was written is read back just after: of two that write in the
        same instant one is told, on stores that know no better.

        Args:
            rollout: One revision after what is there now.

        Raises:
            RolloutConflictError: Another has changed it meanwhile.
            VersionNotFoundError: A version that it names anew, or a link of its chain, is not here.
            RegistryReadOnlyError: The registry is open over HTTP.
            RegistryUnavailableError: The store failed.
        """
        path, data = f"{rollout.scenario}/{ROLLOUT_NAME}", rollout_bytes(rollout)
        there = self.rollout(rollout.scenario)
        for version in rollout.versions - there.versions:
            self.chain(rollout.scenario, version)
        if there.revision != rollout.revision - 1:
            raise _changed_meanwhile(rollout, there)
        with self._files.errors(f"write {path}"):
            self._store.write(path, data)
        there = self.rollout(rollout.scenario)
        if there != rollout:
            raise _changed_meanwhile(rollout, there)
        log.info("rollout_changed", **rollout.model_dump())

    def fetch(self, scenario: str, version: int, destination: Path) -> Path:
        """Bring a version to `<destination>/<scenario>/<version:08d>` and return that directory.

        It appears there verified and whole, or not at all. A good copy that is already there is used as it is.

        Raises:
            VersionNotFoundError: There is no such version.
            BundleError: What arrived is not what the manifest says.
            RegistryUnavailableError: The store failed.
            OSError: The local disk failed.
        """
        manifest = self.manifest(scenario, version)
        source = self._version_path(scenario, version)
        target = destination / source
        if _is_copy(target, manifest):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        arriving = target.parent / f".{target.name}.{secrets.token_hex(4)}"
        try:
            arriving.mkdir()
            for name, entry in manifest.files.items():
                self._files.download(f"{source}/{name}", entry, arriving / name)
            with path_in_errors(arriving / MANIFEST_NAME):
                (arriving / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
            verify_copy(arriving)
            shutil.rmtree(target, ignore_errors=True)
            arriving.rename(target)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        sync_directory(target.parent)
        return target

    def verify(self, manifest: Manifest) -> None:
        """Read every file of a version and compare it with the manifest; nothing is kept.

        Raises:
            VersionNotFoundError: A file is gone.
            BundleSizeError: A file is cut short, or too long.
            BundleDigestError: The bytes of a file are others.
            RegistryUnavailableError: The store failed.
        """
        for name, entry in manifest.files.items():
            self._files.verify(f"{self._version_path(manifest.scenario, manifest.version)}/{name}", entry)

    def chunks(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        """The bytes of one file of a version, piece by piece and unverified.

        Raises:
            VersionNotFoundError: The version has no such file.
            BundleSizeError: The file is cut short, or too long.
            RegistryUnavailableError: The store failed.
        """
        path = f"{self._version_path(manifest.scenario, manifest.version)}/{name}"
        entry = manifest.files.get(name)
        if entry is None:
            raise VersionNotFoundError(f"{path} is not a file of this version; it has {', '.join(manifest.files)}")
        self._files.require_size(path, entry)
        yield from self._files.chunks(path, limit_bytes=entry.bytes)

    def prune(self, scenario: str, retention: Retention) -> list[int]:
        """Remove the versions that retention does not keep; returns them.

        Versions that the rollout names are kept with their chains. Of refused candidates the newest
        `retention.versions` stay. Deltas are removed before what they build on, so that every version left can be built
        whenever this is interrupted. A version whose manifest is damaged is kept among the newest `retention.versions`,
        where it may still be repaired.

        Args:
            scenario: Whose versions.
            retention: Which of them are kept.

        Raises:
            RolloutFormatError: The rollout cannot be read; nothing is removed.
            RegistryReadOnlyError: The registry is open over HTTP.
            RegistryUnavailableError: The store failed.
        """
        versions = self.versions(scenario)
        named = self.rollout(scenario).versions
        published = {version: own for version in versions if (own := self._published(scenario, version)) is not None}
        damaged = {version for version in versions[-retention.versions :] if version not in published}
        kept = retention.select(published, named=named) | damaged | (named & set(versions))
        for version in sorted(self._files.by_version(scenario), reverse=True):
            # What lies beyond the newest version is a publication under way or cut short, which will be made again.
            if version not in kept and version < versions[-1]:
                self._files.remove(self._version_path(scenario, version))
                self._seen.pop((scenario, version), None)
        refused = f"{scenario}/{REFUSED_NAME}"
        for version in sorted(self._files.by_version(refused))[: -retention.versions]:
            self._files.remove(self._version_path(refused, version))
        return [version for version in versions if version not in kept]

    def _published(self, scenario: str, version: int) -> PublishedVersion | None:
        """Read what retention depends on, once per version; None where the manifest is damaged."""
        if (scenario, version) not in self._seen:
            try:
                manifest = self.manifest(scenario, version)
            except (BundleError, VersionNotFoundError):
                return None
            size_bytes = sum(entry.bytes for entry in manifest.files.values())
            self._seen[scenario, version] = PublishedVersion(manifest.builds_on, manifest.published_at_ms, size_bytes)
        return self._seen[scenario, version]

    def _is_published(self, manifest: Manifest) -> bool:
        with suppress(VersionNotFoundError):
            there = self.manifest(manifest.scenario, manifest.version)
            if there.digest == manifest.digest:
                return True
            raise VersionConflictError(
                f"{self.url} already holds version {manifest.version} of scenario {manifest.scenario!r} with digest "
                f"{there.digest}, not {manifest.digest}; publish under a new version"
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

    def _owner(self, scenario: str) -> Owner | None:
        path = f"{check_scenario(scenario)}/{OWNER_NAME}"
        with self._files.errors(f"read {path}"):
            try:
                return Owner.model_validate_json(self._store.read(path, limit_bytes=OWNER_LIMIT_BYTES))
            except FileNotFoundError:
                return None
            except ValidationError as error:
                raise BundleFormatError(
                    f"{self.url}/{path}: expected an owner, found {error.errors()[0]['msg']}; delete it"
                ) from error

    def _check_owner(self, scenario: str, owner: Owner | None) -> None:
        if owner is None:
            return
        there = self._owner(scenario)
        if there is None:  # as an empty mount point shows it
            raise RegistryUnavailableError(
                f"registry {self.url} holds no owner of {scenario!r} any more, epoch {owner.epoch} had claimed it; "
                "bring it back, or start this updater again to begin anew"
            )
        if there != owner:
            raise FencedError(
                f"scenario {scenario!r} in {self.url}: expected epoch {owner.epoch} as its owner, found {there}; "
                "another updater publishes to it now, so this one ends without publishing anything more"
            )

    def _latest_version(self, scenario: str) -> int | None:
        path = f"{check_scenario(scenario)}/{LATEST_NAME}"
        with self._files.errors(f"read {path}"):
            try:
                data = self._store.read(path, limit_bytes=LATEST_LIMIT_BYTES)
            except FileNotFoundError:
                return None
        if not data.strip().isdigit() or not 1 <= int(data) <= MAX_VERSION:
            raise LatestFormatError(f"{path}: expected a version number, found {data!r}; write one there")
        return int(data)

    @staticmethod
    def _version_path(scenario: str, version: int) -> str:
        return f"{scenario}/{version:08d}"


def _changed_meanwhile(rollout: Rollout, there: Rollout) -> RolloutConflictError:
    return RolloutConflictError(
        f"the rollout of {rollout.scenario!r}: expected revision {rollout.revision - 1} before the change, found "
        f"{there.revision} by {there.changed_by or 'nobody'}; look at it, then make the change again"
    )


def _is_copy(directory: Path, manifest: Manifest) -> bool:
    with suppress(BundleError, OSError):
        return manifest_bytes(verify_copy(directory)) == manifest_bytes(manifest)
    return False
