"""Who changed what by an admin call: one JSON document a line, on disk before anything is done."""

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
    """The audit log takes no line, so that nothing may be done that it would have to tell."""


class AuditLog:
    """Tells admin calls to a file that only grows, and to the process's log.

    A call that succeeds leaves two lines, `began` and `done`. A `began` without an end is a process that died, or a
    disk that filled up, within the call. A call that was turned away leaves one, `refused`.

    Args:
        path: The file; None leaves the process's log alone to tell.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()

    @contextmanager
    def call(self, action: str, *, by: str, address: str = "", **details: Any) -> Iterator[None]:
        """Wraps an admin call: told before it begins, and again when it has ended.

        Args:
            action: What is done, such as `adapters.pin`.
            by: Who does it: the name of a key.
            address: Where the call came from.
            details: What it is done to; never a secret.

        Raises:
            AuditError: The beginning cannot be told; what is wrapped has not run.
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
        """Tells one thing; with a file, it is on disk when this returns.

        Args:
            action: What was done or wanted.
            outcome: How it stands.
            by: Who did it.
            address: Where the call came from.
            details: What it was done to; never a secret.

        Raises:
            AuditError: The file cannot be written.
        """
        entry = {"action": action, "outcome": outcome, "by": by, "address": address, **details}
        log.info("admin_call", **entry)
        if self._path is not None:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._append(self._path, json.dumps({"at": moment, **entry}, default=str).encode() + b"\n")

    def _record_end(self, action: str, outcome: Outcome, **details: Any) -> None:
        """What is done is done: a file that takes no line by now does not make it a failure."""
        try:
            self.record(action, outcome, **details)
        except AuditError as error:
            log.error("audit_log_failed", action=action, outcome=outcome, problem=str(error))

    def _append(self, path: Path, line: bytes) -> None:
        """Opened anew for each line, so that the file may be moved away by whoever rotates logs."""
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ONLY)
                with os.fdopen(descriptor, "ab", buffering=0) as file:
                    if file.write(line) != len(line):
                        raise OSError("the disk took part of the line only")
                    os.fsync(file.fileno())
        except OSError as error:
            raise AuditError(
                f"`security.audit_log` {path} takes no line: {error.strerror or error}; nothing is done that it would "
                "have to tell, so make room or give rights there"
            ) from error
