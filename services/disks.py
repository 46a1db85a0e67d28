"""Disk errors in one sentence, and temporary directories that are removed even after their process was killed."""

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from services.errors import HeadwaterServiceError

LOCK_NAME = "LOCK"
STALE_SECONDS = 86_400.0  # age of directories without a lock, as earlier releases left them, that are removed

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE}
)
_IN_THE_WAY = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP})
_TEMPORARY = frozenset({"/tmp", "/var/tmp", "/usr/tmp"})  # noqa: S108
_NO_TEMPORARY = "No usable temporary directory"  # the standard library's words


class TemporaryDirectoryError(HeadwaterServiceError):
    """No temporary directory can be created."""


def describe_disk_error(error: Exception) -> str | None:
    """Describe a disk error in one sentence, with path and remedy; return None for any other error.

    Args:
        error: the exception that was raised.
    """
    if isinstance(error, sqlite3.Error):
        return f"a SQLite file cannot be used: {error}; make room on its disk, give rights there, or put it back"
    if not isinstance(error, OSError):
        return None
    if _NO_TEMPORARY in str(error):
        return _no_temporary_directory(error)
    if error.errno not in _DISK_ERRORS | _IN_THE_WAY:
        return None
    if _is_temporary(error.filename):
        return _no_temporary_directory(error)
    where = f"{error.filename} cannot be used" if error.filename else "a file or standard output cannot be written"
    return f"{where}: {error.strerror}; {remedy(error)}"


def remedy(error: Exception) -> str:
    """Return the remedy for a disk error."""
    if isinstance(error, OSError) and error.errno in _IN_THE_WAY:
        return "a file lies where a directory belongs, or the other way round; move it away"
    if isinstance(error, FileNotFoundError):
        return "put it back, or the directory that it lies in"
    return "make room or give rights there"


def _is_temporary(name: object) -> bool:
    """Return whether a path is below a directory for temporary files; libraries create some of their own."""
    parents = Path(name).parents if isinstance(name, str) else ()
    return any(str(parent) in _TEMPORARY or str(parent) == os.environ.get("TMPDIR") for parent in parents)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Create a temporary directory that is deleted at the end, and delete those of killed processes first.

    Args:
        prefix: the prefix of the name; leftover directories with it are deleted.

    Raises:
        TemporaryDirectoryError: no directory can be created, since all disks are full or read-only.
    """
    try:
        parent = Path(tempfile.gettempdir())
        _remove_leftovers(parent, prefix)
        directory, lock = _create(parent, prefix)
    except OSError as error:
        raise TemporaryDirectoryError(_no_temporary_directory(error)) from error
    with lock:
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _no_temporary_directory(error: OSError) -> str:
    return (
        f"no temporary directory can be made: {error}; set the environment variable TMPDIR to a directory that can be "
        "written and has room"
    )


def _create(parent: Path, prefix: str) -> tuple[Path, BinaryIO]:
    """Create a directory, and lock it before it gets the name that other processes search for."""
    aside = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
    try:
        lock = (aside / LOCK_NAME).open("xb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory = parent / aside.name.removeprefix(".")
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return directory, lock


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Delete directories of the same user whose process is dead."""
    for pattern in (f"{prefix}*", f".{prefix}*"):
        for path in parent.glob(pattern):
            with suppress(OSError):  # another process may delete it at the same time
                if path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink() and _is_dead(path):
                    shutil.rmtree(path, ignore_errors=True)


def _is_dead(path: Path) -> bool:
    """Return whether a directory's process is dead: its lock is free, or it has none and has not changed for long."""
    try:
        with (path / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        newest = max(entry.lstat().st_mtime for entry in (path, *path.iterdir()))
        return time.time() - newest > STALE_SECONDS
    except BlockingIOError:
        return False
    return True
