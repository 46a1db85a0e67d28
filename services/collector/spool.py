"""The spool: a bounded queue in SQLite that keeps accepted events on disk until Kafka has them.

Events survive a SIGKILL once `append` has returned and, if the disk honours fsync, a power cut. An event is removed
once Kafka has it; if the process is killed in between, it is sent again, and dropped downstream by its `event_id`.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from services.errors import HeadwaterServiceError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
    accepted_ms INTEGER NOT NULL
)
"""
_PROBED = "CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY, written BLOB)"
_SIZE = "length(key) + length(value)"
_PROBE = "INSERT OR REPLACE INTO probe VALUES (1, randomblob(4096))"  # no smaller than an event
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"  # until then the log holds user ids of removed events


class SpoolError(HeadwaterServiceError):
    """The spool's file cannot be opened, read or written."""


class SpoolFullError(HeadwaterServiceError):
    """The spool has no room for the events; none of them was stored."""


class SpoolRecord(NamedTuple):
    """An event as a Kafka record."""

    kind: str
    key: bytes
    value: bytes

    @property
    def size_bytes(self) -> int:
        """Return the bytes of key and value, which count towards the limit."""
        return len(self.key) + len(self.value)


class SpoolEntry(NamedTuple):
    """An event in the spool; sequence numbers follow the order of acceptance."""

    sequence: int
    record: SpoolRecord


class Spool:
    """A queue of events in one file, for the threads of one process at a time.

    Args:
        path: the file; if missing it is created readable by its owner alone, since it holds user ids.
        max_events: the most events in the queue.
        max_bytes: the most bytes of keys and values in the queue.

    Raises:
        SpoolError: the file cannot be opened, is not a spool, or is used by another process.
    """

    def __init__(self, path: Path, *, max_events: int, max_bytes: int) -> None:
        self._path, self._max_events, self._max_bytes = path, max_events, max_bytes
        self._lock = threading.Lock()
        self._problem: str | None = None  # of the last write
        self._db, (self._events, self._bytes) = _open(path)

    def __len__(self) -> int:
        """Return the number of events in the queue."""
        return self._events

    @property
    def size_bytes(self) -> int:
        """Return the bytes of keys and values in the queue."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Return whether both limits leave room."""
        return self._events < self._max_events and self._bytes < self._max_bytes

    def append(self, events: Sequence[SpoolRecord]) -> None:
        """Append events in order, all or none; they are on disk when it returns.

        Args:
            events: the events to keep until Kafka has them.

        Raises:
            SpoolFullError: the events do not fit.
            SpoolError: the disk does not take them.
        """
        size_bytes = sum(event.size_bytes for event in events)
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            if self._events + len(events) > self._max_events or self._bytes + size_bytes > self._max_bytes:
                raise SpoolFullError(f"{self._events} events of {self._bytes} bytes wait for Kafka")
            insert = "INSERT INTO spool (kind, key, value, accepted_ms) VALUES (?, ?, ?, ?)"
            self._write(insert, [(*event, now_ms) for event in events])
            self._events += len(events)
            self._bytes += size_bytes

    def oldest(self, *, max_events: int, max_bytes: int) -> list[SpoolEntry]:
        """Return the oldest events in order, at least one if the queue is not empty.

        Args:
            max_events: the most events to return.
            max_bytes: the size of all returned events at which no further one is added.

        Raises:
            SpoolError: the file cannot be read.
        """
        entries: list[SpoolEntry] = []
        with self._lock, _as_spool_error(self._path):
            rows = self._db.execute("SELECT sequence, kind, key, value FROM spool ORDER BY sequence")
            for sequence, *fields in rows:
                entries.append(SpoolEntry(sequence, SpoolRecord(*fields)))
                max_bytes -= entries[-1].record.size_bytes
                if len(entries) == max_events or max_bytes <= 0:
                    break
            rows.close()
        return entries

    def remove_through(self, entries: Sequence[SpoolEntry]) -> None:
        """Remove events from the head of the queue, and erase them from the file and its write-ahead log.

        Args:
            entries: the result of `oldest`, or its beginning.

        Raises:
            SpoolError: the disk does not take the change; the events are still in the queue.
        """
        with self._lock:
            self._write("DELETE FROM spool WHERE sequence <= ?", [(entries[-1].sequence,)])
            self._events -= len(entries)
            self._bytes -= sum(entry.record.size_bytes for entry in entries)
            with suppress(sqlite3.Error):  # the events are removed; the log is emptied with the next ones
                self._db.execute(_EMPTY_LOG)

    def problem(self) -> str | None:
        """Return why the disk takes no events at present, after another attempt if the last write failed; else None."""
        if self._problem is not None:
            with self._lock, suppress(SpoolError):
                self._write(_PROBE, [()])
        return self._problem

    def oldest_accepted_ms(self) -> int | None:
        """Return when the oldest event was accepted, epoch milliseconds; None if the queue is empty.

        Raises:
            SpoolError: the file cannot be read.
        """
        with self._lock, _as_spool_error(self._path):
            row = self._db.execute("SELECT accepted_ms FROM spool ORDER BY sequence LIMIT 1").fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Close the file; events in the queue stay in it."""
        with self._lock:
            self._db.close()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run one transaction, which is durable once committed."""
        try:
            with _as_spool_error(self._path):
                self._transact(statement, rows)
        except SpoolError as error:
            self._problem = str(error)
            raise
        self._problem = None

    def _transact(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            with suppress(sqlite3.Error):  # some errors have ended the transaction already
                self._db.execute("ROLLBACK")
            raise


@contextmanager
def _as_spool_error(path: Path) -> Iterator[None]:
    """Turn an error of SQLite or the disk into a `SpoolError` that names the file and a remedy."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        remedy = (
            "the file is damaged: put it back from a copy, or move it away to begin an empty one, which loses the "
            "events that wait in it"
            if damaged
            else "free space on its disk, check its permissions, and that no other collector has it"
        )
        raise SpoolError(f"the spool {path} cannot be used: {error}; {remedy}") from error


def _open(path: Path) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """Open the file; return the connection, and the number of events with the bytes of their keys and values."""
    with _as_spool_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite creates its log with the same permissions
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two collectors on one spool would send events twice
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA secure_delete=ON")  # overwrites removed events in the file
            db.execute(_SCHEMA)
            db.execute(_PROBED)
            db.execute(_EMPTY_LOG)
            _check(db)
            counted = db.execute(f"SELECT count(*), coalesce(sum({_SIZE}), 0) FROM spool").fetchone()  # noqa: S608
        except BaseException:
            db.close()
            raise
    return db, counted


def _check(db: sqlite3.Connection) -> None:
    """Check for damage at the start rather than in the middle of a request."""
    (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)
