"""Audit log of admin calls: one JSON document per line, on disk before a call has any effect."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from services.errors import HeadwaterServiceError

OWNER_ONLY = 0o600

Outcome = Literal["began", "done", "failed", "refused"]

log = structlog.get_logger(__name__)


class AuditError(HeadwaterServiceError, OSError):
    """The audit log cannot be written, so calls that it must record are refused."""


class AuditLog:
    """Append-only record of admin calls, in a file and in the process's log.

    A successful call leaves two lines, `began` and `done`. A `began` without an end means that the process died or the
    disk filled up during the call. A rejected call leaves one line, `refused`.

    Args:
        path: the path of the file; None records calls in the process's log alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()

    @contextmanager
    def call(self, action: str, *, by: str, address: str = "", **details: Any) -> Iterator[None]:
        """Record an admin call before the block runs, and its outcome afterwards.

        Args:
            action: the name of the call, such as `adapters.pin`.
            by: the name of the caller's key.
            address: the address of the caller.
            details: the arguments of the call; never a secret.

        Raises:
            AuditError: the start cannot be recorded; the block has not run.
        """
        self.record(action, "began", by=by, address=address, **details)
        try:
            yield
        except BaseException as error:
            problem = str(error) or type(error).__name__
            self._record_end(action, "failed", by=by, address=address, error=problem, **details)
            raise
        self._record_end(action, "done", by=by, address=address, **details)

    def record(self, action: str, outcome: Outcome, *, by: str, address: str = "", **details: Any) -> None:
        """Append one entry; with a file, it is on disk when this returns.

        Args:
            action: the name of the call.
            outcome: the state of the call.
            by: the name of the caller's key.
            address: the address of the caller.
            details: the arguments of the call; never a secret.

        Raises:
            AuditError: the file cannot be written.
        """
        entry = {"action": action, "outcome": outcome, "by": by, "address": address, **details}
        log.info("admin_call", **entry)
        if self._path is not None:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._append(self._path, json.dumps({"at": moment, **entry}, default=str).encode() + b"\n")

    def _record_end(self, action: str, outcome: Outcome, **details: Any) -> None:
        """Record the outcome of a call. An error is only logged, since the call has taken effect."""
        try:
            self.record(action, outcome, **details)
        except AuditError as error:
            log.error("audit_log_failed", action=action, outcome=outcome, problem=str(error))

    def _append(self, path: Path, line: bytes) -> None:
        """Append a line. The file is opened for each line, so that log rotation may move it away."""
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ONLY)
                with os.fdopen(descriptor, "ab", buffering=0) as file:
                    if file.write(line) != len(line):
                        raise OSError("only part of the line was written")
                    os.fsync(file.fileno())
        except OSError as error:
            raise AuditError(
                f"`security.audit_log` {path} cannot be written: {error.strerror or error}; calls that it must record "
                "are refused until there is room and permission to write there"
            ) from error
