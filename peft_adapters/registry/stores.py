"""Stores of a registry's files: any fsspec file system, or the registry process over HTTP (read-only).

Both take paths relative to the registry's root and raise OSError, which `StoreAccess` maps to errors of the registry.
"""

import weakref
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfileobj
from typing import Any, Protocol

import fsspec
import httpx
from fsspec.implementations.local import LocalFileSystem
from pydantic import TypeAdapter, ValidationError

from peft_adapters.durable import durable_file, sync_directory
from peft_adapters.errors import BundleFormatError, RegistryAddressError, RegistryReadOnlyError
from peft_adapters.registry.http_deadline import DEADLINE, READ_SECONDS, Deadline
from peft_adapters.registry.internal_http import error_detail, internal_client

CHUNK_BYTES = 2**20
WAIT_SECONDS = 10.0  # timeout of one operation on the connection, such as a connect
SLOWEST_BYTES_PER_SECOND = 100_000
LISTING_NAME = "manifests.json"
LISTING_LIMIT_BYTES = 16 * 2**20

_PATHS = TypeAdapter(list[str])


class Store(Protocol):
    """Files by relative path. A missing file raises FileNotFoundError, a failing store any other OSError.

    If a registry process reports that a version is damaged, BundleFormatError is raised.
    """

    def files(self, path: str) -> list[str]:
        """Return the paths, relative to `path`, of all files under it; none if it does not exist."""

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """Return at most the first `limit_bytes` bytes of a file."""

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """Yield at most the first `limit_bytes` bytes of a file in chunks."""

    def write(self, path: str, data: bytes) -> None:
        """Replace a file as a whole; if that fails, the previous content stays."""

    def upload(self, path: str, source: Path) -> None:
        """Replace a file as a whole by a local file."""

    def remove(self, path: str) -> None:
        """Remove a file, or a directory and its contents; do nothing if it does not exist."""

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None if the store does not report it."""

    def missing_root(self) -> str | None:
        """Return the root directory if it does not exist; None if it exists or that is unknown."""


class FsspecStore:
    """The files under a root of any fsspec file system: a local path, `s3://`, `memory://` and others."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def files(self, path: str) -> list[str]:
        """Return the paths, relative to `path`, of all files under it; none if it does not exist."""
        self._fs.invalidate_cache()
        directory = f"{self._path(path)}/"
        return [file.removeprefix(directory) for file in self._fs.find(directory)]

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """Return at most the first `limit_bytes` bytes of a file."""
        return bytes(self._fs.cat_file(self._path(path), start=0, end=limit_bytes))

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """Yield at most the first `limit_bytes` bytes in ranged reads: open files of `memory://` share one cursor."""
        for start in range(0, limit_bytes, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, limit_bytes)
            chunk = bytes(self._fs.cat_file(self._path(path), start=start, end=end))
            yield chunk
            if len(chunk) < end - start:
                return

    def write(self, path: str, data: bytes) -> None:
        """Replace a file as a whole; if that fails, the previous content stays."""
        target = self._path(path)
        if not self._is_local:
            self._fs.pipe_file(target, data)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with durable_file(Path(target)) as file:
            file.write(data)
        # Manifests and LATEST are written this way, after the uploads, so one sync makes the names of all durable.
        sync_directory(Path(target).parent)

    def upload(self, path: str, source: Path) -> None:
        """Replace a file as a whole by a local file."""
        target = self._path(path)
        if not self._is_local:
            self._fs.put_file(str(source), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as data, durable_file(Path(target)) as file:
            copyfileobj(data, file)

    def remove(self, path: str) -> None:
        """Remove a file, or a directory and its contents; do nothing if it does not exist."""
        self._fs.invalidate_cache()
        try:
            self._fs.rm(self._path(path), recursive=True)
        except FileNotFoundError:
            return

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes."""
        return int(self._fs.size(self._path(path)))

    def missing_root(self) -> str | None:
        """Return the root if it is a local directory that does not exist."""
        return self._root if self._is_local and not Path(self._root).exists() else None

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"


class HttpStore:
    """The files of a registry process, read with httpx from its `/v1/files`.

    fsspec is not used over HTTP, because it finds files by parsing links in HTML; the registry process returns a list.

    Args:
        url: address of the files, ending in `/v1/files`.
        api_key: API key of scope `read`, if the registry process requires one.
        read_seconds: deadline of one read as a whole; received bytes extend it by the time that they take at
            `SLOWEST_BYTES_PER_SECOND`.
    """

    def __init__(self, url: str, *, api_key: str | None = None, read_seconds: float = READ_SECONDS) -> None:
        self._url, self._read_seconds = url.rstrip("/"), read_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = internal_client(retries=2, timeout=WAIT_SECONDS, headers=headers)
        weakref.finalize(self, self._client.close)

    def files(self, path: str) -> list[str]:
        """Return the paths of the manifests of scenario `path`; the registry process lists no other files."""
        data = self.read(f"{path}/{LISTING_NAME}", limit_bytes=LISTING_LIMIT_BYTES)
        try:
            return _PATHS.validate_json(data)
        except ValidationError as error:
            raise OSError(
                f"GET {self._url}/{path}/{LISTING_NAME}: expected a list of paths, got {data[:40]!r}"
            ) from error

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """Return at most the first `limit_bytes` bytes of a file."""
        return b"".join(self.chunks(path, limit_bytes=limit_bytes))

    def chunks(self, path: str, *, limit_bytes: int) -> Iterator[bytes]:
        """Yield at most the first `limit_bytes` bytes of a file in chunks."""
        remaining_bytes = limit_bytes
        deadline = Deadline(self._read_seconds, bytes_per_second=SLOWEST_BYTES_PER_SECOND)
        try:
            with self._client.stream("GET", f"{self._url}/{path}", extensions={DEADLINE: deadline}) as response:
                _check_status(response)
                for chunk in response.iter_bytes():
                    yield chunk[:remaining_bytes]
                    remaining_bytes -= len(chunk)
                    if remaining_bytes <= 0:
                        return
        except httpx.HTTPError as error:
            raise OSError(f"GET {self._url}/{path}: {error or type(error).__name__}") from error

    def write(self, path: str, data: bytes) -> None:
        """Raise RegistryReadOnlyError, because the registry process only serves reads."""
        raise self._read_only(path)

    def upload(self, path: str, source: Path) -> None:
        """Raise RegistryReadOnlyError, because the registry process only serves reads."""
        raise self._read_only(path)

    def remove(self, path: str) -> None:
        """Raise RegistryReadOnlyError, because the registry process only serves reads."""
        raise self._read_only(path)

    def size(self, path: str) -> int | None:
        """Return None, because the size is known only once the file is read."""

    def missing_root(self) -> str | None:
        """Return None, because the registry process does not report whether its root exists."""
        return None

    def _read_only(self, path: str) -> RegistryReadOnlyError:
        return RegistryReadOnlyError(
            f"{self._url} is read-only, so {path} cannot be changed; "
            "open the registry by its own path or s3:// address to publish"
        )


def open_store(url: str, *, api_key: str | None = None, read_seconds: float = READ_SECONDS) -> Store:
    """Open the store of a registry's address.

    Args:
        url: address of the registry.
        api_key: API key of scope `read`, if the registry process requires one.
        read_seconds: deadline of one read over HTTP as a whole.

    Raises:
        RegistryAddressError: fsspec does not know the protocol, or lacks the package for it.
    """
    if url.startswith(("http://", "https://")):
        return HttpStore(url, api_key=api_key, read_seconds=read_seconds)
    try:
        return FsspecStore(url)
    except (ImportError, ValueError) as error:
        raise RegistryAddressError(
            f"`registry_url` {url!r} cannot be opened: {error}; "
            "give a directory, an http:// address, or an address of fsspec whose package is installed"
        ) from error


def _check_status(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.NOT_FOUND:
        raise FileNotFoundError(str(response.url))
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise PermissionError(
            f"GET {response.url}: status {response.status_code}; give a key of scope `read` as `registry.api_key`"
        )
    if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:  # the registry process could not read its own files
        detail = error_detail(next(response.iter_bytes(), b""))
        raise BundleFormatError(f"GET {response.url}: status 500: {detail}; look at the log of the registry process")
    if response.status_code != httpx.codes.OK:
        raise OSError(f"GET {response.url}: status {response.status_code}")
