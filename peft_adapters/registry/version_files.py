"""The files of versions in a store: written and verified one by one, read piece by piece, removed manifest first."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_adapters.durable import path_in_errors
from peft_adapters.errors import BundleDigestError, BundleSizeError, RegistryUnavailableError, VersionNotFoundError
from peft_adapters.registry.manifest import MANIFEST_NAME, MAX_VERSION, FileEntry, Manifest, manifest_bytes
from peft_adapters.registry.stores import Store

_FILE_PATH = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})/([^/]+)")


class VersionFiles:
    """What a registry does to single files.

    Args:
        url: of the registry, for errors.
        store: where they lie.
    """

    def __init__(self, url: str, store: Store) -> None:
        self._url, self._store = url, store

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Give what the store raises its meaning; `doing` says what could not be done.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        try:
            yield
        except OSError as error:
            raise RegistryUnavailableError(
                f"registry {self._url} cannot {doing}: {error}; check the store, then try again"
            ) from error

    def by_version(self, path: str) -> dict[int, set[str]]:
        """Names of the files under `path`, by version.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"list {path}"):
            matches = [match for match in map(_FILE_PATH.fullmatch, self._store.files(path)) if match]
        matches = [match for match in matches if int(match[1]) <= MAX_VERSION]
        found: dict[int, set[str]] = {int(match[1]): set() for match in matches}
        for match in matches:
            found[int(match[1])].add(match[2])
        return found

    def put(self, path: str, directory: Path, manifest: Manifest, *, before_manifest: Callable[[], None]) -> None:
        """Write a bundle; it exists once its manifest does.

        Args:
            path: where to.
            directory: where from.
            manifest: its manifest.
            before_manifest: is called when all else is written; what it raises leaves the bundle unseen.

        Raises:
            BundleDigestError: what the store gives back is not what the manifest says.
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"write {path}"):
            for name, entry in manifest.files.items():  # 1. the files
                self._store.upload(f"{path}/{name}", directory / name)
                self._verify(f"{path}/{name}", entry)  # 2. as the store gives them back
            data = manifest_bytes(manifest)
            before_manifest()
            self._store.write(f"{path}/{MANIFEST_NAME}", data)  # 3. the manifest
            if self._store.read(f"{path}/{MANIFEST_NAME}", limit_bytes=len(data) + 1) != data:
                raise BundleDigestError(
                    f"{self._url}/{path}/{MANIFEST_NAME}: the store returns other bytes than it took"
                )

    def download(self, path: str, entry: FileEntry, target: Path) -> None:
        """Bring one file here, no more of it than it should be, and check its digest.

        Raises:
            BundleSizeError: it is cut short, or too long.
            BundleDigestError: its bytes are others.
            VersionNotFoundError: it is gone.
            RegistryUnavailableError: the store failed.
        """
        with path_in_errors(target), target.open("xb") as file:
            self.verify(path, entry, write=file.write)

    def verify(self, path: str, entry: FileEntry, *, write: Callable[[bytes], object] = bytes) -> None:
        """Read one file, no more of it than it should be, and check its size and digest.

        Args:
            path: Of the file.
            entry: Its size and digest, from the manifest.
            write: Called with each piece.

        Raises:
            BundleSizeError: It is cut short, or too long.
            BundleDigestError: Its bytes are others.
            VersionNotFoundError: It is gone.
            RegistryUnavailableError: The store failed.
        """
        found_bytes, sha256 = 0, hashlib.sha256()
        for chunk in self.chunks(path, limit_bytes=entry.bytes + 1):
            write(chunk)
            found_bytes += len(chunk)
            sha256.update(chunk)
        if found_bytes != entry.bytes:
            found = "more" if found_bytes > entry.bytes else f"{found_bytes}"
            raise BundleSizeError(f"{self._url}/{path}: expected {entry.bytes} bytes, found {found}; publish it anew")
        if sha256.hexdigest() != entry.sha256:
            raise BundleDigestError(
                f"{self._url}/{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()}; the file is damaged, "
                "publish it anew"
            )

    def require_size(self, path: str, entry: FileEntry) -> None:
        """Check the size of a file before any of it is sent on, where the store knows it.

        Raises:
            BundleSizeError: the file has another size.
            VersionNotFoundError: it is gone.
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"read {path}"):
            try:
                found_bytes = self._store.size(path)
            except FileNotFoundError as error:
                raise self._gone(path) from error
        if found_bytes not in (None, entry.bytes):
            raise BundleSizeError(
                f"{self._url}/{path}: expected {entry.bytes} bytes, found {found_bytes}; publish it anew"
            )

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """At most the first `limit_bytes` bytes of a file, piece by piece.

        Raises:
            VersionNotFoundError: it is gone.
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"read {path}"):
            try:
                yield from self._store.chunks(path, limit_bytes=limit_bytes)
            except FileNotFoundError as error:
                raise self._gone(path) from error

    def _gone(self, path: str) -> VersionNotFoundError:
        return VersionNotFoundError(
            f"{self._url}/{path} is gone: the version was pruned meanwhile, or is damaged; take another version"
        )

    def remove(self, path: str) -> None:
        """Remove a version.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"remove {path}"):
            self._store.remove(f"{path}/{MANIFEST_NAME}")  # first, so that half a version is never seen
            self._store.remove(path)

    def _verify(self, path: str, entry: FileEntry) -> None:
        sha256 = hashlib.sha256()
        for chunk in self.chunks(path, limit_bytes=entry.bytes + 1):
            sha256.update(chunk)
        if sha256.hexdigest() != entry.sha256:
            raise BundleDigestError(
                f"{self._url}/{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()} after the upload; "
                "nothing was published, write the bundle anew and publish again"
            )
