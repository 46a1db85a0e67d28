"""Activations below the lowest LoRA layer, computed once a text and kept on disk, bounded.

Processes on a host may share the file: SQLite in write-ahead mode serialises them, and any of them may find what
another has computed. Keys are the digests of the base and of the text, so a new base or text never meets old entries.
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

_QUERY_CHUNK = 500  # keys; SQLite bounds the variables of one statement
_COMPUTE_CHUNK = 512  # texts computed between two writes, so that an interruption loses little
_UNTOLD = 1_024  # texts; fewer are encoded without a word
_LOG_SECONDS = 5.0  # between two lines on how far the encoding is
_MEASURED_SHARE = 16  # the size of all entries is measured anew when this part of the bound was written
_LOCK_SECONDS = 30.0  # how long one process waits for another's write
_RETRY_SECONDS = 0.02
_WARNING_SECONDS = 60.0  # between two lines about a disk that fails


class PrefixCache:
    """Gives frozen activations of texts, from memory of the disk or from the encoder.

    Args:
        encoder: computes what is missing.
        path: the SQLite file; None keeps nothing.
        max_bytes: oldest entries are deleted above this size of all activations.

    Attributes:
        hits: texts found.
        misses: texts computed.

    Raises:
        EncoderError: the file cannot be opened or made, or is no SQLite file.
    """

    def __init__(self, encoder: Encoder, path: Path | None, *, max_bytes: int = 4 * 2**30) -> None:
        self._encoder, self._max_bytes = encoder, max_bytes
        self.dim = encoder.dim
        self.hits = self.misses = 0
        self._written_bytes = max_bytes  # since all entries were measured, which has not been done yet
        self._told = 0.0  # when the log was last told how far the encoding is
        self._path, self._next_warning = path, 0.0  # monotonic seconds
        try:
            self._db = _opened(path)
        except (OSError, sqlite3.Error) as error:
            raise EncoderError(
                f"the cache {path} cannot be used: {error}; make room or give rights there, delete the file if it is "
                "damaged, or name another `encoder.cache_dir`"
            ) from error

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """The cache that the encoder's settings name."""
        settings = encoder.settings
        path = settings.cache_dir / "prefix.sqlite" if settings.cache_dir else None
        return cls(encoder, path, max_bytes=settings.cache_max_bytes)

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        """Activations of texts, [tokens, dim] each, in order."""
        keys = [f"{self._encoder.prefix_digest[:32]}/{text_digest(text)}" for text in texts]
        found = self._read(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        self.hits += len(texts) - len(missing)
        self.misses += len(missing)
        self._compute(missing, found)
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        try:
            for start in range(0, len(keys), _QUERY_CHUNK):
                chunk = keys[start : start + _QUERY_CHUNK]
                marks = ",".join("?" * len(chunk))
                rows = self._db.execute(f"SELECT key, hidden FROM prefix WHERE key IN ({marks})", chunk)  # noqa: S608
                found |= {key: self._tensor(blob) for key, blob in rows}
        except sqlite3.Error as error:
            self._warn("not read", error)
        return found

    def _compute(self, missing: dict[str, str], found: dict[str, Tensor]) -> None:
        keys = list(missing)
        for start in range(0, len(keys), _COMPUTE_CHUNK):
            chunk = keys[start : start + _COMPUTE_CHUNK]
            hidden = self._encoder.prefix([missing[key] for key in chunk])
            found |= zip(chunk, hidden, strict=True)
            self._keep([(key, states.numpy().tobytes()) for key, states in zip(chunk, hidden, strict=True)])
            self._tell(start + len(chunk), len(keys))

    def _tell(self, done: int, of: int) -> None:
        if of > _UNTOLD and time.monotonic() > self._told + _LOG_SECONDS:
            self._told = time.monotonic()
            log.info("prefix_cache_filling", done=done, of=of)

    def _keep(self, entries: list[tuple[str, bytes]]) -> None:
        """Write entries. A disk that fails costs computing them again, and is logged."""
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
        with self._db:  # ends in a commit, or in a rollback when the disk is full
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO prefix VALUES (?, ?)", entries)
            self._written_bytes += sum(len(hidden) for _, hidden in entries)
            if self._written_bytes > self._max_bytes // _MEASURED_SHARE:
                self._bound()

    def _bound(self) -> None:
        """Delete what is too much. Reads every entry's size, so not after every write."""
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


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path or ":memory:", timeout=_LOCK_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        _write_ahead(db)
        db.execute("PRAGMA synchronous=OFF")  # a cache: what a power cut loses is computed again
        db.execute("CREATE TABLE IF NOT EXISTS prefix (key TEXT PRIMARY KEY, hidden BLOB NOT NULL)")
    except BaseException:
        db.close()
        raise
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to write-ahead mode; SQLite itself does not wait here while another process switches a new file."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise  # a full or read-only disk, which waiting does not change
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
