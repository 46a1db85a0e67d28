"""The files of published versions: written and verified one by one, read in chunks, removed manifest first."""

import hashlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from peft_adapters.durable import path_in_errors, sync_directory
from peft_adapters.errors import BundleDigestError, BundleError, BundleSizeError, VersionNotFoundError
from peft_adapters.registry.manifest import (
    MANIFEST_NAME,
    MAX_VERSION,
    FileEntry,
    Manifest,
    manifest_bytes,
    verify_copy,
)
from peft_adapters.registry.store_access import StoreAccess

_FILE_PATH = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})/([^/]+)")


def version_path(scenario: str, version: int) -> str:
    """Return the directory of a version, relative to the registry's root.

    >>> version_path("home", 7)
    'home/00000007'
    """
    return f"{scenario}/{version:08d}"


class VersionFiles:
    """Reads, writes and removes the files of versions.

    Args:
        access: access to the registry's store.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access, self._url, self._store = access, access.url, access.store

    def names_by_version(self, path: str) -> dict[int, set[str]]:
        """Return the names of the files of each version under `path`.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors(f"list {path}"):
            matches = [match for match in map(_FILE_PATH.fullmatch, self._store.files(path)) if match]
        names: dict[int, set[str]] = {}
        for match in matches:
            if int(match[1]) <= MAX_VERSION:
                names.setdefault(int(match[1]), set()).add(match[2])
        return names

    def write(self, path: str, directory: Path, manifest: Manifest, *, before_manifest: Callable[[], None]) -> None:
        """Write a bundle; it exists once its manifest does.

        Args:
            path: directory of the version in the store.
            directory: local directory of the bundle.
            manifest: manifest of the bundle.
            before_manifest: called once all other files are written; if it raises, the bundle stays invisible.

        Raises:
            BundleDigestError: the store returns other bytes than the manifest records.
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors(f"write {path}"):
            for name, entry in manifest.files.items():
                self._store.upload(f"{path}/{name}", directory / name)  # 1. upload a file
                self._verify_upload(f"{path}/{name}", entry)  # 2. read it back
            data = manifest_bytes(manifest)
            before_manifest()
            self._store.write(f"{path}/{MANIFEST_NAME}", data)  # 3. write the manifest
            if self._store.read(f"{path}/{MANIFEST_NAME}", limit_bytes=len(data) + 1) != data:
                raise BundleDigestError(
                    f"{self._url}/{path}/{MANIFEST_NAME}: the store returns other bytes than it took"
                )

    def fetch(self, manifest: Manifest, destination: Path) -> Path:
        """Download a version to `<destination>/<scenario>/<version:08d>` and return that directory.

        The directory appears complete and verified, or not at all. A valid copy that exists already is used as it is.

        Raises:
            VersionNotFoundError: a file of the version is gone.
            BundleError: the downloaded bytes are not those of the manifest.
            RegistryUnavailableError: the store failed.
            OSError: the local disk failed.
        """
        source = version_path(manifest.scenario, manifest.version)
        target = destination / source
        if _is_copy(target, manifest):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            for name, entry in manifest.files.items():
                self._download(f"{source}/{name}", entry, temporary / name)
            with path_in_errors(temporary / MANIFEST_NAME):
                (temporary / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
            verify_copy(temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_directory(target.parent)
        return target

    def verify(self, path: str, entry: FileEntry, *, write: Callable[[bytes], object] = bytes) -> None:
        """Read one file, at most one byte beyond its recorded size, and check its size and digest.

        Args:
            path: path of the file.
            entry: its size and digest, from the manifest.
            write: called with each chunk.

        Raises:
            BundleSizeError: the file is too short or too long.
            BundleDigestError: the digest differs.
            VersionNotFoundError: the file is gone.
            RegistryUnavailableError: the store failed.
        """
        read_bytes, sha256 = 0, hashlib.sha256()
        for chunk in self.chunks(path, limit_bytes=entry.bytes + 1):
            write(chunk)
            read_bytes += len(chunk)
            sha256.update(chunk)
        if read_bytes != entry.bytes:
            found = "more" if read_bytes > entry.bytes else f"{read_bytes}"
            raise BundleSizeError(f"{self._url}/{path}: expected {entry.bytes} bytes, found {found}; publish it again")
        if sha256.hexdigest() != entry.sha256:
            raise BundleDigestError(
                f"{self._url}/{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()}; the file is damaged, "
                "publish it again"
            )

    def require_size(self, path: str, entry: FileEntry) -> None:
        """Check the size of a file before any of it is sent on, if the store knows the size.

        Raises:
            BundleSizeError: the file has another size.
            VersionNotFoundError: the file is gone.
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors(f"read {path}"):
            try:
                stored_bytes = self._store.size(path)
            except FileNotFoundError as error:
                raise self._missing(path) from error
        if stored_bytes not in (None, entry.bytes):
            raise BundleSizeError(
                f"{self._url}/{path}: expected {entry.bytes} bytes, found {stored_bytes}; publish it again"
            )

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """Yield at most the first `limit_bytes` bytes of a file in chunks.

        Raises:
            VersionNotFoundError: the file is gone.
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors(f"read {path}"):
            try:
                yield from self._store.chunks(path, limit_bytes=limit_bytes)
            except FileNotFoundError as error:
                raise self._missing(path) from error

    def remove(self, path: str) -> None:
        """Remove a version, its manifest first, so that readers never see part of it.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self._access.errors(f"remove {path}"):
            self._store.remove(f"{path}/{MANIFEST_NAME}")
            self._store.remove(path)

    def _download(self, path: str, entry: FileEntry, target: Path) -> None:
        with path_in_errors(target), target.open("xb") as file:
            self.verify(path, entry, write=file.write)

    def _verify_upload(self, path: str, entry: FileEntry) -> None:
        sha256 = hashlib.sha256()
        for chunk in self.chunks(path, limit_bytes=entry.bytes + 1):
            sha256.update(chunk)
        if sha256.hexdigest() != entry.sha256:
            raise BundleDigestError(
                f"{self._url}/{path}: expected sha256 {entry.sha256}, found {sha256.hexdigest()} after the upload; "
                "nothing was published, write the bundle again and publish again"
            )

    def _missing(self, path: str) -> VersionNotFoundError:
        return VersionNotFoundError(
            f"{self._url}/{path} is gone: the version was pruned meanwhile, or is damaged; take another version"
        )


def _is_copy(directory: Path, manifest: Manifest) -> bool:
    with suppress(BundleError, OSError):
        return manifest_bytes(verify_copy(directory)) == manifest_bytes(manifest)
    return False
