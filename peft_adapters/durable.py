"""Durable writes: a file appears complete under its name or not at all, even after a kill or a power failure."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Add a path to an OSError that has none; those of `write` and `fsync` do not name the file.

    Raises:
        OSError: the original error, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name complete and synced to disk, or not at all.

    The name survives a power failure once `sync_directory` has been called; one call covers many files.

    Raises:
        OSError: the disk failed; the previous file at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with path_in_errors(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # on a read-only file system the first error is the one to report
            temporary.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-link a file that never changes; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory to disk."""
    _sync(directory)


def sync_file(path: Path) -> None:
    """Sync the contents of a closed file to disk."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with path_in_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
