"""SQLite store of what waits between events: impressions until their windows close, events until their item arrives.

One write transaction is open from one `commit` to the next, so that a killed process finds the state of its last
commit and nothing newer. The newest impressions are also cached in memory, where nearly every click finds its own;
older ones are read from the file, so memory stays bounded however many wait.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from streams.errors import JoinStoreError
from streams.pending_impressions import PendingImpression, user_digest

CACHED_IMPRESSIONS = 50_000
PAGE_CACHE_BYTES = 64 * 2**20
_COLUMNS = "seq, ts, request, marks, body"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS shown (
    seq INTEGER PRIMARY KEY, ts INTEGER, request INTEGER, user INTEGER, marks TEXT, body TEXT
);
CREATE INDEX IF NOT EXISTS shown_request ON shown (request);
CREATE INDEX IF NOT EXISTS shown_user ON shown (user);
CREATE TABLE IF NOT EXISTS held (
    ticket INTEGER PRIMARY KEY, item_id TEXT, user INTEGER, ts INTEGER, topic TEXT, body TEXT
);
CREATE INDEX IF NOT EXISTS held_item ON held (item_id);
CREATE INDEX IF NOT EXISTS held_ts ON held (ts);
CREATE INDEX IF NOT EXISTS held_user ON held (user);
CREATE TABLE IF NOT EXISTS seen (seq INTEGER PRIMARY KEY, digest BLOB);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
"""


class JoinStore:
    """Impressions by request and by user, held events by item, and digests of recent event ids.

    Args:
        path: the SQLite file; None keeps everything in memory.
        cached_impressions: the number of newest impressions that are cached as objects.
    """

    def __init__(self, path: Path | None, *, cached_impressions: int = CACHED_IMPRESSIONS) -> None:
        # Used by one thread at a time, not always the same one: the scorer guards it with a lock.
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA cache_size=-{PAGE_CACHE_BYTES // 1024}")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN IMMEDIATE")
        self._cached_impressions = cached_impressions
        self._cache: OrderedDict[int, PendingImpression] = OrderedDict()  # the newest ones, in order of seq
        self._by_request: dict[int, int] = {}  # cached impressions
        self._by_user: dict[int, list[int]] = {}  # cached impressions, oldest first
        self._unsaved: list[PendingImpression] = []
        self._changed: dict[int, PendingImpression] = {}  # saved before, with changed marks
        self._new_digests: list[bytes] = []
        self._next_seq = 1 + (self._scalar("SELECT max(seq) FROM shown") or 0)
        self._impressions: int = self._scalar("SELECT count(*) FROM shown") or 0
        self.held_count: int = self._scalar("SELECT count(*) FROM held") or 0
        self._next_ticket = 1 + (self._scalar("SELECT max(ticket) FROM held") or 0)

    def __len__(self) -> int:
        """Return the number of impressions."""
        return self._impressions

    def commit(self, **meta: str) -> None:
        """Make all changes durable together with some values, atomically.

        Args:
            **meta: the values to keep, by key; see `meta`.
        """
        self.save()
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    def meta(self, key: str) -> str | None:
        """Return a value that was committed, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Close the file; uncommitted changes are lost."""
        with suppress(sqlite3.Error):  # after a disk failure the transaction has ended already
            self._db.rollback()
        self._db.close()

    def save(self) -> None:
        """Write new impressions, marks and digests to SQLite, without a commit."""
        self._db.executemany(
            "INSERT INTO shown VALUES (?, ?, ?, ?, ?, ?)",
            [(i.seq, i.ts, i.request, i.user, i.marks_text(), i.body()) for i in self._unsaved],
        )
        changed = [(impression.marks_text(), impression.seq) for impression in self._changed.values()]
        self._db.executemany("UPDATE shown SET marks = ? WHERE seq = ?", changed)
        self._db.executemany("INSERT INTO seen (digest) VALUES (?)", ((d,) for d in self._new_digests))
        self._unsaved, self._changed, self._new_digests = [], {}, []
        while len(self._cache) > self._cached_impressions:
            self._uncache(next(iter(self._cache)))

    # ---- impressions

    @property
    def next_numbers(self) -> tuple[int, int]:
        """The numbers of the next impression and the next held event; they only rise, even when rows are dropped."""
        return self._next_seq, self._next_ticket

    def number_from(self, seq: int, ticket: int) -> None:
        """Continue numbering from these numbers."""
        self._next_seq, self._next_ticket = seq, ticket

    def add(self, impression: PendingImpression) -> None:
        """Add an impression and assign its number."""
        impression.seq = self._next_seq
        self._next_seq += 1
        self._impressions += 1
        self._unsaved.append(impression)
        self._cache[impression.seq] = impression
        self._by_request[impression.request] = impression.seq
        self._by_user.setdefault(impression.user, []).append(impression.seq)
        if len(self._unsaved) >= self._cached_impressions:
            self.save()

    def by_request(self, request: int) -> PendingImpression | None:
        """Return the impression of a request, or None."""
        seq = self._by_request.get(request)
        if seq is not None:
            return self._cache[seq]
        return next(self._older("request = ? ORDER BY seq DESC LIMIT 1", request), None)

    def by_user(self, user_id: str, *, limit: int = 32) -> Iterator[PendingImpression]:
        """Yield impressions of a user, newest first."""
        user = user_digest(user_id)
        cached = self._by_user.get(user, ())
        yield from (self._cache[seq] for seq in reversed(cached[-limit:]))
        yield from self._older("user = ? ORDER BY seq DESC LIMIT ?", user, limit)

    def mark(self, impression: PendingImpression, index: int, *, bought: bool = False) -> None:
        """Record that the item at `index` was clicked, or bought."""
        impression.marks |= 1 << index | bought << (len(impression.item_ids) + index)
        if impression.seq not in self._cache:
            self._db.execute("UPDATE shown SET marks = ? WHERE seq = ?", (impression.marks_text(), impression.seq))
        elif not self._unsaved or impression.seq < self._unsaved[0].seq:
            self._changed[impression.seq] = impression

    def from_seq(self, seq: int, *, limit: int) -> list[PendingImpression]:
        """Return impressions from a number in the order of arrival on."""
        older = list(self._older("seq >= ? ORDER BY seq LIMIT ?", seq, limit))
        if len(older) == limit:
            return older
        seqs = range(max(seq, next(iter(self._cache), seq)), self._next_seq)
        cached = (self._cache[at] for at in seqs if at in self._cache)
        return older + list(islice(cached, limit - len(older)))

    @property
    def oldest_ts(self) -> int | None:
        """The event time of the oldest impression; None if there is none."""
        if self._impressions == len(self._cache):
            return next((impression.ts for impression in self._cache.values()), None)
        return self._scalar("SELECT ts FROM shown ORDER BY seq LIMIT 1")

    def oldest(self, limit: int) -> list[tuple[int, int]]:
        """Return number and event time of the oldest impressions."""
        self.save()
        return list(self._db.execute("SELECT seq, ts FROM shown ORDER BY seq LIMIT ?", (limit,)))

    def drop_before(self, seq: int) -> None:
        """Drop the impressions before a number in the order of arrival."""
        self.save()
        self._impressions -= self._db.execute("DELETE FROM shown WHERE seq < ?", (seq,)).rowcount
        while self._cache and next(iter(self._cache)) < seq:
            self._uncache(next(iter(self._cache)))

    def forget(self, user_id: str) -> list[PendingImpression]:
        """Drop the impressions of a user and return them."""
        self.save()
        user = user_digest(user_id)
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM shown WHERE user = ?", (user,))  # noqa: S608
        dropped = [PendingImpression.from_row(*row) for row in rows]
        self._db.execute("DELETE FROM shown WHERE user = ?", (user,))
        self._impressions -= len(dropped)
        for impression in dropped:
            if impression.seq in self._cache:
                self._uncache(impression.seq)
        # Another user may have sent the same request id before.
        requests = {impression.request for impression in dropped}
        cached = ((impression.request, seq) for seq, impression in self._cache.items())
        self._by_request |= {request: seq for request, seq in cached if request in requests}
        return dropped

    def bound(self, now_ms: int) -> None:
        """Move event times of impressions that are later than a time back to it; scans all of them."""
        self.save()
        self._db.execute("UPDATE shown SET ts = ? WHERE ts > ?", (now_ms, now_ms))
        for impression in self._cache.values():
            impression.ts = min(impression.ts, now_ms)

    def _older(self, where: str, *values: int) -> Iterator[PendingImpression]:
        """Yield impressions that are no longer cached."""
        if self._impressions == len(self._cache):
            return
        oldest_cached = next(iter(self._cache), self._next_seq)
        query = f"SELECT {_COLUMNS} FROM shown WHERE seq < ? AND {where}"  # noqa: S608
        for row in self._db.execute(query, (oldest_cached, *values)).fetchall():
            yield PendingImpression.from_row(*row)

    def _uncache(self, seq: int) -> None:
        impression = self._cache.pop(seq)
        if self._by_request.get(impression.request) == seq:
            del self._by_request[impression.request]
        seqs = self._by_user[impression.user]
        seqs.remove(seq)
        if not seqs:
            del self._by_user[impression.user]

    # ---- events that wait for their item

    def hold(self, *, item_id: str, user_id: str, ts: int, topic: str, body: str) -> None:
        """Keep an event until its item arrives.

        Args:
            item_id: the item that the event waits for.
            user_id: the user of the event.
            ts: event time, epoch milliseconds.
            topic: the topic that the event came from.
            body: the event as text.
        """
        row = (self._next_ticket, item_id, user_digest(user_id), ts, topic, body)
        self._db.execute("INSERT INTO held VALUES (?, ?, ?, ?, ?, ?)", row)
        self._next_ticket += 1
        self.held_count += 1

    def bound_held(self, latest_ms: int) -> None:
        """Move event times of held events that are later than a time back to it."""
        if self.held_count:
            self._db.execute("UPDATE held SET ts = ? WHERE ts > ?", (latest_ms, latest_ms))

    def release(self, item_id: str) -> list[str]:
        """Remove the events that waited for an item; return their bodies in order of arrival."""
        if not self.held_count:
            return []
        bodies = [
            body for (body,) in self._db.execute("SELECT body FROM held WHERE item_id = ? ORDER BY ticket", (item_id,))
        ]
        self._drop_held("item_id = ?", item_id)
        return bodies

    def drop_held_before(self, ts: int) -> list[str]:
        """Drop held events older than an event time; return the topic of each."""
        return self._drop_held("ts < ?", ts) if self.held_count else []

    def drop_oldest_held(self) -> list[str]:
        """Drop the event that was held longest; return its topic."""
        return self._drop_held("ticket = (SELECT min(ticket) FROM held)")

    def forget_held(self, user_id: str) -> list[str]:
        """Drop the held events of a user; return the topic of each."""
        return self._drop_held("user = ?", user_digest(user_id)) if self.held_count else []

    def held_by_topic(self) -> dict[str, int]:
        """Return the number of held events by topic."""
        return dict(self._db.execute("SELECT topic, count(*) FROM held GROUP BY topic")) if self.held_count else {}

    def _drop_held(self, where: str, *values: object) -> list[str]:
        rows = self._db.execute(f"DELETE FROM held WHERE {where} RETURNING topic", values).fetchall()  # noqa: S608
        self.held_count -= len(rows)
        return [topic for (topic,) in rows]

    # ---- event ids

    def add_digest(self, event_digest: bytes) -> None:
        """Remember the digest of an event id."""
        self._new_digests.append(event_digest)

    def digests(self, newest: int) -> list[bytes]:
        """Return the newest digests, oldest first; drop the others."""
        self.save()
        self.trim_digests(newest)
        return [digest for (digest,) in self._db.execute("SELECT digest FROM seen ORDER BY seq")]

    def trim_digests(self, newest: int) -> None:
        """Drop all but the newest digests."""
        last = self._scalar("SELECT max(seq) FROM seen") or 0
        self._db.execute("DELETE FROM seen WHERE seq <= ?", (last - newest,))

    def _scalar(self, query: str) -> int | None:
        value: int | None = self._db.execute(query).fetchone()[0]
        return value


def copy_store(source: Path, target: Path) -> None:
    """Copy the last committed state of a store, which may be in use, without writing to it.

    The caller syncs the copy to disk.

    Args:
        source: the file of the store.
        target: the file to create.

    Raises:
        sqlite3.Error: if the source is damaged, or the copy cannot be written.
    """
    old, new = _connect_read_only(source), sqlite3.connect(target)
    try:
        new.execute("PRAGMA journal_mode=OFF")  # an unfinished copy is discarded
        new.execute("PRAGMA synchronous=OFF")
        old.backup(new)
    finally:
        new.close()
        old.close()


def check_store(path: Path) -> dict[str, str]:
    """Check the file of a store for damage without writing to it, and return its values of `JoinStore.meta`.

    Raises:
        JoinStoreError: if the file is damaged.
        sqlite3.Error: if the file cannot be read, or is no store.
    """
    with closing(_connect_read_only(path)) as db:
        (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise JoinStoreError(result)
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return {}
        return dict(db.execute("SELECT key, value FROM meta"))


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a file without writing to it or to its write-ahead log."""
    in_use = path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.resolve().as_uri()}?mode=ro{'' if in_use else '&immutable=1'}"
    return sqlite3.connect(uri, uri=True)
