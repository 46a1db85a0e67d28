"""Files that outlive a kill and a power cut: whole under their name, or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole and synced to disk, or not at all.

    Its name survives a power cut once `sync_directory` has been called; one call does for many files.

    Raises:
        OSError: The disk refused; what stood at `path` before still stands.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """Have a file that never changes under another name too; where the file system has no links, as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
