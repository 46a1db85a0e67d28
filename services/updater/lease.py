"""The lease on a directory: one process owns it at a time, and an owner that hangs is replaced."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import IO

import structlog

from peft_adapters.durable import path_in_errors
from peft_adapters.errors import AlreadyRunningError

log = structlog.get_logger(__name__)

LEASE_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0


class Lease:
    """Exclusive ownership of a directory, from construction to `close`.

    The owner locks a file in the directory and touches it every `HEARTBEAT_SECONDS`. The lock of a process that died is
    free, so a successor starts at once. While the owner touches the file, a second process is refused. An owner that
    holds the lock and does not touch the file for `LEASE_SECONDS` hangs, and the lease passes to the new process.

    Args:
        path: the file to lock.
        stop: an event that ends the wait for a hanging owner.

    Raises:
        AlreadyRunningError: another process owns the directory.
    """

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._file = _acquire(path, stop)
        self._closed = threading.Event()
        threading.Thread(target=self._send_heartbeats, name="lease", daemon=True).start()

    def close(self) -> None:
        """Release the lease."""
        self._closed.set()
        self._file.close()

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())


def _acquire(path: Path, stop: threading.Event) -> IO[str]:
    """Lock the file: at once if its owner is dead, after the lease has expired if the owner hangs."""
    while True:
        file = _lock(path)
        if file is not None:
            return file
        owner = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        if _is_touched(path, stop):
            raise AlreadyRunningError(
                f"another updater ({owner}) is at work in {path.parent}; stop it first, or give this one another "
                "`updater.checkpoint_dir` and scenario"
            )
        log.warning("owner_hangs", owner=owner, lease_seconds=LEASE_SECONDS, path=str(path))
        path.unlink(missing_ok=True)  # the hanging process keeps its lock on a file that has no name any more


def _lock(path: Path) -> IO[str] | None:
    """Return the locked file with this process's id in it; None if another process holds the lock."""
    file = path.open("a+", encoding="utf-8")
    try:
        with path_in_errors(path):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    with contextlib.suppress(OSError):  # only the lock counts; the text is for people
        _write_owner(file.fileno())
    return file


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode() + b"\n")


def _is_touched(path: Path, stop: threading.Event) -> bool:
    """Return whether the owner touches its file before the lease expires; True also when stopped."""
    last = path.stat().st_mtime_ns
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline and not stop.wait(HEARTBEAT_SECONDS / 2):
        if path.stat().st_mtime_ns != last:
            return True
    return stop.is_set()
