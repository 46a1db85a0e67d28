"""Files that outlive a kill and a power cut: whole under their name, or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Put a path into an OSError that has none: those of `write` and `fsync` do not say which file failed.

    Raises:
        OSError: The one raised within, with its file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole and synced to disk, or not at all.

    Its name survives a power cut once `sync_directory` has been called; one call does for many files.

    Raises:
        OSError: The disk refused; what stood at `path` before still stands.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with path_in_errors(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # a read-only file system: the error that matters is already on its way
            temporary.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Have a file that never changes under another name too; where the file system has no links, as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    _sync(directory)


def sync_file(path: Path) -> None:
    """Make the contents of a closed file survive a power cut."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with path_in_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
