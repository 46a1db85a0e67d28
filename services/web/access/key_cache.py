"""The API keys of a running process, reloaded when their file changes."""

import time
from pathlib import Path

import structlog

from services.metrics.access import AccessMetrics
from services.web.access.keys import Key, Keys, KeysError, KeysFile

CHECK_SECONDS = 1.0  # a key that was made or revoked takes effect after at most this long

log = structlog.get_logger(__name__)


class KeyCache:
    """The valid keys, reloaded when their file changes.

    If the file becomes unusable, the keys that were read last stay valid; log and metrics report the problem.

    Args:
        path: the path of the keys file.
        metrics: the metrics that report an unusable file.

    Raises:
        KeysError: the keys file cannot be used at the start.
    """

    def __init__(self, path: Path, metrics: AccessMetrics) -> None:
        self._path, self._metrics = path, metrics
        self._signature = self._file_signature()
        self._keys: Keys = KeysFile(path).read()
        self._next_check_seconds = time.monotonic() + CHECK_SECONDS
        self._metrics.show_keys_file(usable=True)

    def find(self, token: str) -> Key | None:
        """Return the key with this token in whatever state, or None if there is no such key."""
        if time.monotonic() >= self._next_check_seconds:
            self._reload_if_changed()
        return self._keys.find(token)

    def _reload_if_changed(self) -> None:
        self._next_check_seconds = time.monotonic() + CHECK_SECONDS
        signature = self._file_signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = KeysFile(self._path).read()
        except KeysError as error:
            self._metrics.show_keys_file(usable=False)
            log.error("keys_file_unusable", problem=str(error), served="the keys that were read last")
            return
        self._metrics.show_keys_file(usable=True)
        log.info("keys_read", keys=len(self._keys.keys))

    def _file_signature(self) -> tuple[int, ...] | None:
        """Return values that differ between two states of the file; None if it cannot be read."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode
