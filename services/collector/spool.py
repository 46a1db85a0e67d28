"""Accepted events on disk until Kafka has them: a bounded queue in SQLite.

What `put` has returned for survives a SIGKILL and, as far as the disk keeps its word, a power cut. An event leaves once
Kafka has it; killed in between, it is sent again, and dropped downstream by its `event_id`.
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
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"  # it holds users' ids of removed events until then


class SpoolError(HeadwaterServiceError):
    """The spool's file cannot be opened, read or written."""


class SpoolFullError(HeadwaterServiceError):
    """The spool has no room for what it was given; none of it was taken."""


class Spooled(NamedTuple):
    """An event as it will be on Kafka."""

    kind: str
    key: bytes
    value: bytes

    @property
    def size_bytes(self) -> int:
        """What it counts against the bound."""
        return len(self.key) + len(self.value)


class Waiting(NamedTuple):
    """An event in the spool; a larger sequence was accepted later."""

    sequence: int
    event: Spooled


class Spool:
    """A queue of events in one file, for one process at a time and all its threads.

    Args:
        path: The file; it is made when it is not there, readable by its owner alone, for it holds users' ids.
        max_events: Most events that wait.
        max_bytes: Most bytes of keys and values that wait.

    Raises:
        SpoolError: The file cannot be opened, is no spool, or another process has it.
    """

    def __init__(self, path: Path, *, max_events: int, max_bytes: int) -> None:
        self._path, self._max_events, self._max_bytes = path, max_events, max_bytes
        self._lock = threading.Lock()
        self._problem: str | None = None  # of the last write
        self._db, (self._events, self._bytes) = _opened(path)

    def __len__(self) -> int:
        """Events that wait."""
        return self._events

    @property
    def size_bytes(self) -> int:
        """Bytes of their keys and values."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether neither bound is reached."""
        return self._events < self._max_events and self._bytes < self._max_bytes

    def put(self, events: Sequence[Spooled]) -> None:
        """Takes events, in order, all or none; they are on disk when it returns.

        Args:
            events: What to keep until it is on Kafka.

        Raises:
            SpoolFullError: They do not fit.
            SpoolError: The disk does not take them.
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

    def oldest(self, *, max_events: int, max_bytes: int) -> list[Waiting]:
        """The events accepted first, in order; at least one when any waits.

        Args:
            max_events: At most so many.
            max_bytes: And no further one once they are so large together.

        Raises:
            SpoolError: The file cannot be read.
        """
        found: list[Waiting] = []
        with self._lock, _as_spool_error(self._path):
            rows = self._db.execute("SELECT sequence, kind, key, value FROM spool ORDER BY sequence")
            for sequence, *fields in rows:
                found.append(Waiting(sequence, Spooled(*fields)))
                max_bytes -= found[-1].event.size_bytes
                if len(found) == max_events or max_bytes <= 0:
                    break
            rows.close()
        return found

    def remove_through(self, waiting: Sequence[Waiting]) -> None:
        """Forgets events from the head of the queue. Nothing of them is left in the file or its write-ahead log.

        Args:
            waiting: What `oldest` gave, or the first of it.

        Raises:
            SpoolError: The disk does not take it; they still wait.
        """
        with self._lock:
            self._write("DELETE FROM spool WHERE sequence <= ?", [(waiting[-1].sequence,)])
            self._events -= len(waiting)
            self._bytes -= sum(entry.event.size_bytes for entry in waiting)
            with suppress(sqlite3.Error):  # they are removed; the log is emptied with the next ones
                self._db.execute(_EMPTY_LOG)

    def problem(self) -> str | None:
        """Why the disk takes no events at present; None when it does. After a write that failed, it tries another."""
        if self._problem is not None:
            with self._lock, suppress(SpoolError):
                self._write(_PROBE, [()])
        return self._problem

    def oldest_accepted_ms(self) -> int | None:
        """When the event that waits longest was accepted, epoch milliseconds; None when none waits.

        Raises:
            SpoolError: The file cannot be read.
        """
        with self._lock, _as_spool_error(self._path):
            row = self._db.execute("SELECT accepted_ms FROM spool ORDER BY sequence LIMIT 1").fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Lets go of the file; what waits stays in it."""
        with self._lock:
            self._db.close()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """One transaction, durable once committed."""
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
    """Says which file, and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        remedy = (
            "the file is damaged: put it back from a copy, or move it away to begin an empty one, which loses the "
            "events that wait in it"
            if damaged
            else "free space on its disk, check its rights, and that no other collector has it"
        )
        raise SpoolError(f"the spool {path} cannot be used: {error}; {remedy}") from error


def _opened(path: Path) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """Opens the file; also the number of events in it, and the bytes of their keys and values."""
    with _as_spool_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite gives its log the same rights
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two collectors on one spool would send each other's events
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA secure_delete=ON")  # what has been sent is no longer in the file
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
    """Finds damage at the start rather than in the middle of a request."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
