"""Bounded on-disk cache of activations below the lowest LoRA layer, computed once per text.

Processes on a host may share the file: SQLite in write-ahead mode serialises their writes, and each reads entries that
the others have computed. Keys hold the digests of the base and of the text: a new base or text never gets an old entry.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import structlog
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder, text_digest
from peft_adapters.errors import EncoderError

log = structlog.get_logger(__name__)

_QUERY_CHUNK = 500  # keys; SQLite limits the number of variables in a statement
_COMPUTE_CHUNK = 512  # texts computed between two writes; limits the loss at an interruption
_MIN_LOGGED_TEXTS = 1_024  # progress on fewer texts is not logged
_LOG_SECONDS = 5.0  # between two log lines about progress
_MEASURED_SHARE = 16  # the total size is measured again after writing 1 / this of the bound
_LOCK_SECONDS = 30.0  # how long a process waits for the write of another
_RETRY_SECONDS = 0.02
_WARNING_SECONDS = 60.0  # between two log lines about disk failures


class PrefixCache:
    """Frozen activations of texts, read from a SQLite file or computed by the encoder.

    Args:
        encoder: encoder that computes missing entries.
        path: path of the SQLite file; None caches in memory only.
        max_bytes: total size of the activations above which the oldest entries are deleted.

    Attributes:
        dim: width of an activation.
        hits: number of texts found in the cache.
        misses: number of texts computed.

    Raises:
        EncoderError: the file cannot be opened or created, or is not a SQLite file.
    """

    def __init__(self, encoder: Encoder, path: Path | None, *, max_bytes: int = 4 * 2**30) -> None:
        self._encoder, self._max_bytes = encoder, max_bytes
        self.dim = encoder.dim
        self.hits = self.misses = 0
        self._written_bytes = max_bytes  # since the last measurement; none has been made yet
        self._logged = 0.0  # monotonic seconds of the last log line about progress
        self._path, self._next_warning = path, 0.0  # monotonic seconds
        try:
            self._db = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise EncoderError(
                f"the cache {path} cannot be used: {error}; make room or give rights there, delete the file if it is "
                "damaged, or name another `encoder.cache_dir`"
            ) from error

    @classmethod
    def from_settings(cls, encoder: Encoder) -> Self:
        """Return the cache that the encoder's settings configure."""
        settings = encoder.settings
        path = settings.cache_dir / "prefix.sqlite" if settings.cache_dir else None
        return cls(encoder, path, max_bytes=settings.cache_max_bytes)

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the activations [tokens, dim] of each text, in order."""
        keys = [f"{self._encoder.prefix_digest[:32]}/{text_digest(text)}" for text in texts]
        entries = self._read(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in entries}
        self.hits += len(texts) - len(missing)
        self.misses += len(missing)
        entries |= self._compute(missing)
        return [entries[key] for key in keys]

    def close(self) -> None:
        """Close the SQLite file."""
        self._db.close()

    def _read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        entries: dict[str, Tensor] = {}
        try:
            for start in range(0, len(keys), _QUERY_CHUNK):
                chunk = keys[start : start + _QUERY_CHUNK]
                placeholders = ",".join("?" * len(chunk))
                select = f"SELECT key, hidden FROM prefix WHERE key IN ({placeholders})"  # noqa: S608
                rows = self._db.execute(select, chunk)
                entries |= {key: self._tensor(blob) for key, blob in rows}
        except sqlite3.Error as error:
            self._warn("not read", error)
        return entries

    def _compute(self, missing: dict[str, str]) -> dict[str, Tensor]:
        """Encode missing texts, given by key, and write them to the file."""
        keys, entries = list(missing), dict[str, Tensor]()
        for start in range(0, len(keys), _COMPUTE_CHUNK):
            chunk = keys[start : start + _COMPUTE_CHUNK]
            hidden = self._encoder.prefix([missing[key] for key in chunk])
            entries |= zip(chunk, hidden, strict=True)
            self._store([(key, states.numpy().tobytes()) for key, states in zip(chunk, hidden, strict=True)])
            self._log_progress(start + len(chunk), len(keys))
        return entries

    def _log_progress(self, done: int, total: int) -> None:
        if total > _MIN_LOGGED_TEXTS and time.monotonic() > self._logged + _LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("prefix_cache_filling", done=done, of=total)

    def _store(self, entries: list[tuple[str, bytes]]) -> None:
        """Write entries. A disk failure is logged; the texts are then encoded again when needed."""
        try:
            self._write(entries)
        except sqlite3.Error as error:
            self._warn("not written", error)

    def _warn(self, failed: str, error: sqlite3.Error) -> None:
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + _WARNING_SECONDS
            log.warning(
                "prefix_cache_failed",
                path=str(self._path),
                problem=f"{failed}: {error}",
                follows="texts are encoded again",
            )

    def _write(self, entries: list[tuple[str, bytes]]) -> None:
        with self._db:  # commits, or rolls back when the disk is full
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO prefix VALUES (?, ?)", entries)
            self._written_bytes += sum(len(hidden) for _, hidden in entries)
            if self._written_bytes > self._max_bytes // _MEASURED_SHARE:
                self._evict_above_bound()

    def _evict_above_bound(self) -> None:
        """Delete the oldest entries above the bound. Reads every entry's size, so it does not run at every write."""
        (used,) = self._db.execute("SELECT coalesce(sum(length(hidden)), 0) FROM prefix").fetchone()
        self._written_bytes = 0
        if used > self._max_bytes - self._max_bytes // _MEASURED_SHARE:
            self._evict(used - self._max_bytes + self._max_bytes // _MEASURED_SHARE)

    def _evict(self, excess_bytes: int) -> None:
        oldest = self._db.execute("SELECT rowid, length(hidden) FROM prefix ORDER BY rowid").fetchall()
        for rowid, size in oldest:
            if excess_bytes <= 0:
                break
            self._db.execute("DELETE FROM prefix WHERE rowid = ?", (rowid,))
            excess_bytes -= size

    def _tensor(self, blob: bytes) -> Tensor:
        return torch.frombuffer(bytearray(blob), dtype=self._encoder.dtype).reshape(-1, self.dim)


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path or ":memory:", timeout=_LOCK_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        _write_ahead(db)
        db.execute("PRAGMA synchronous=OFF")  # entries lost at a power failure are computed again
        db.execute("CREATE TABLE IF NOT EXISTS prefix (key TEXT PRIMARY KEY, hidden BLOB NOT NULL)")
    except BaseException:
        db.close()
        raise
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to write-ahead mode, with retries: SQLite does not wait while another process switches a new file."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise  # a full or read-only disk: waiting does not help
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
