"""What waits between events, kept in SQLite: impressions until their windows close, events until their item comes.

One write transaction is open from one `commit` to the next, so that a killed process finds what the last commit left,
and nothing newer. The newest impressions are also held in memory, where nearly every click finds its own; older ones
cost a look at the file, and memory stays bounded however many wait.
"""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from streams.errors import JoinStoreError

CACHED_IMPRESSIONS = 50_000
DIGEST_BYTES = 8
PAGE_CACHE_BYTES = 64 * 2**20
_SEPARATOR = "\0"
_AS_JSON = "\1"  # an id holds the separator

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


@dataclass(slots=True)
class PendingImpression:
    """An impression that waits.

    Attributes:
        ts: event time, epoch milliseconds, never later than its record's.
        query: what the shopper had searched for, where that was it.
        marks: bit `n` is set once the item at index `n` was clicked or bought, bit `items + n` once it was bought.
        seq: place in the order of arrival; the store gives it.
    """

    ts: int
    topic: str
    request: int
    user_id: str
    session_id: str | None
    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    query: str | None = None
    marks: int = 0
    seq: int = 0
    user: int = field(init=False)

    def __post_init__(self) -> None:
        """The user as the store's index has it."""
        self.user = user_digest(self.user_id)

    def clicked(self) -> tuple[bool, ...]:
        """Of each item, whether it was clicked or bought."""
        return _bits(self.marks, len(self.item_ids))

    def bought(self) -> tuple[bool, ...]:
        """Of each item, whether it was bought."""
        return _bits(self.marks >> len(self.item_ids), len(self.item_ids))


class JoinStore:
    """Impressions by request and by user, held events by item, digests of recent event ids.

    Args:
        path: the SQLite file; None keeps everything in memory.
        cached_impressions: the newest ones held as objects.
    """

    def __init__(self, path: Path | None, *, cached_impressions: int = CACHED_IMPRESSIONS) -> None:
        # One thread at a time, but not always the same: the scorer guards it with a lock.
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA cache_size=-{PAGE_CACHE_BYTES // 1024}")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN IMMEDIATE")
        self._cached_impressions = cached_impressions
        self._cache: OrderedDict[int, PendingImpression] = OrderedDict()  # the newest, in order of seq
        self._by_request: dict[int, int] = {}  # of the cached
        self._by_user: dict[int, list[int]] = {}  # of the cached, oldest first
        self._unsaved: list[PendingImpression] = []
        self._changed: dict[int, PendingImpression] = {}  # saved before, with other marks now
        self._new_digests: list[bytes] = []
        self._next_seq = 1 + (self._one("SELECT max(seq) FROM shown") or 0)
        self._impressions: int = self._one("SELECT count(*) FROM shown") or 0
        self.held_count: int = self._one("SELECT count(*) FROM held") or 0
        self._next_ticket = 1 + (self._one("SELECT max(ticket) FROM held") or 0)

    def __len__(self) -> int:
        """Impressions kept."""
        return self._impressions

    def commit(self, **meta: str) -> None:
        """Make everything so far durable, and some values with it, all or nothing."""
        self.save()
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")

    def meta(self, key: str) -> str | None:
        """A value of the last commit."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def close(self) -> None:
        """Let go of the file; what was not committed is forgotten."""
        with suppress(sqlite3.Error):  # a failed disk has ended the transaction already
            self._db.rollback()
        self._db.close()

    def save(self) -> None:
        """Hand what is new to SQLite, still uncommitted."""
        self._db.executemany(
            "INSERT INTO shown VALUES (?, ?, ?, ?, ?, ?)",
            [(s.seq, s.ts, s.request, s.user, _marks(s), _packed(s)) for s in self._unsaved],
        )
        changed = [(_marks(s), s.seq) for s in self._changed.values()]
        self._db.executemany("UPDATE shown SET marks = ? WHERE seq = ?", changed)
        self._db.executemany("INSERT INTO seen (digest) VALUES (?)", ((d,) for d in self._new_digests))
        self._unsaved, self._changed, self._new_digests = [], {}, []
        while len(self._cache) > self._cached_impressions:
            self._uncache(next(iter(self._cache)))

    # ---- impressions

    @property
    def next_numbers(self) -> tuple[int, int]:
        """Of the next impression and of the next held event; they only rise, whatever has been dropped."""
        return self._next_seq, self._next_ticket

    def number_from(self, seq: int, ticket: int) -> None:
        """Go on numbering from there."""
        self._next_seq, self._next_ticket = seq, ticket

    def add(self, shown: PendingImpression) -> None:
        """Keep an impression."""
        shown.seq = self._next_seq
        self._next_seq += 1
        self._impressions += 1
        self._unsaved.append(shown)
        self._cache[shown.seq] = shown
        self._by_request[shown.request] = shown.seq
        self._by_user.setdefault(shown.user, []).append(shown.seq)
        if len(self._unsaved) >= self._cached_impressions:
            self.save()

    def by_request(self, request: int) -> PendingImpression | None:
        """The impression of a request."""
        seq = self._by_request.get(request)
        if seq is not None:
            return self._cache[seq]
        return next(self._older("request = ? ORDER BY seq DESC LIMIT 1", request), None)

    def by_user(self, user_id: str, *, limit: int = 32) -> Iterator[PendingImpression]:
        """Impressions of a user, newest first."""
        user = user_digest(user_id)
        cached = self._by_user.get(user, ())
        yield from (self._cache[seq] for seq in reversed(cached[-limit:]))
        yield from self._older("user = ? ORDER BY seq DESC LIMIT ?", user, limit)

    def mark(self, shown: PendingImpression, index: int, *, bought: bool = False) -> None:
        """Note that the item at `index` was clicked or `bought`."""
        shown.marks |= 1 << index | bought << (len(shown.item_ids) + index)
        if shown.seq not in self._cache:
            self._db.execute("UPDATE shown SET marks = ? WHERE seq = ?", (_marks(shown), shown.seq))
        elif not self._unsaved or shown.seq < self._unsaved[0].seq:
            self._changed[shown.seq] = shown

    def from_seq(self, seq: int, *, limit: int) -> list[PendingImpression]:
        """Impressions from a place in the order of arrival on."""
        found = list(self._older("seq >= ? ORDER BY seq LIMIT ?", seq, limit))
        if len(found) == limit:
            return found
        seqs = range(max(seq, next(iter(self._cache), seq)), self._next_seq)
        cached = (self._cache[at] for at in seqs if at in self._cache)
        return found + list(islice(cached, limit - len(found)))

    @property
    def oldest_ts(self) -> int | None:
        """Event time of the impression kept longest."""
        if self._impressions == len(self._cache):
            return next((shown.ts for shown in self._cache.values()), None)
        return self._one("SELECT ts FROM shown ORDER BY seq LIMIT 1")

    def oldest(self, limit: int) -> list[tuple[int, int]]:
        """Place and event time of the impressions kept longest."""
        self.save()
        return list(self._db.execute("SELECT seq, ts FROM shown ORDER BY seq LIMIT ?", (limit,)))

    def drop_before(self, seq: int) -> None:
        """Drop what arrived before a place in the order of arrival."""
        self.save()
        self._impressions -= self._db.execute("DELETE FROM shown WHERE seq < ?", (seq,)).rowcount
        while self._cache and next(iter(self._cache)) < seq:
            self._uncache(next(iter(self._cache)))

    def forget(self, user_id: str) -> list[PendingImpression]:
        """Drop a user's impressions; what they were."""
        self.save()
        user = user_digest(user_id)
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM shown WHERE user = ?", (user,))  # noqa: S608
        gone = [_shown(*row) for row in rows]
        self._db.execute("DELETE FROM shown WHERE user = ?", (user,))
        self._impressions -= len(gone)
        for shown in gone:
            if shown.seq in self._cache:
                self._uncache(shown.seq)
        requests = {shown.request for shown in gone}  # another user may have sent the same one before
        self._by_request |= {shown.request: seq for seq, shown in self._cache.items() if shown.request in requests}
        return gone

    def bound(self, now_ms: int) -> None:
        """Take back event times of impressions that are later than a time. It looks through all of them."""
        self.save()
        self._db.execute("UPDATE shown SET ts = ? WHERE ts > ?", (now_ms, now_ms))
        for shown in self._cache.values():
            shown.ts = min(shown.ts, now_ms)

    def _older(self, where: str, *values: int) -> Iterator[PendingImpression]:
        """Impressions that are no longer cached."""
        if self._impressions == len(self._cache):
            return
        oldest_cached = next(iter(self._cache), self._next_seq)
        query = f"SELECT {_COLUMNS} FROM shown WHERE seq < ? AND {where}"  # noqa: S608
        for row in self._db.execute(query, (oldest_cached, *values)).fetchall():
            yield _shown(*row)

    def _uncache(self, seq: int) -> None:
        shown = self._cache.pop(seq)
        if self._by_request.get(shown.request) == seq:
            del self._by_request[shown.request]
        seqs = self._by_user[shown.user]
        seqs.remove(seq)
        if not seqs:
            del self._by_user[shown.user]

    # ---- events that wait for their item

    def hold(self, *, item_id: str, user_id: str, ts: int, topic: str, body: str) -> None:
        """Keep an event until its item comes."""
        row = (self._next_ticket, item_id, user_digest(user_id), ts, topic, body)
        self._db.execute("INSERT INTO held VALUES (?, ?, ?, ?, ?, ?)", row)
        self._next_ticket += 1
        self.held_count += 1

    def bound_held(self, latest_ms: int) -> None:
        """Take back event times of held events that are later than a time."""
        if self.held_count:
            self._db.execute("UPDATE held SET ts = ? WHERE ts > ?", (latest_ms, latest_ms))

    def release(self, item_id: str) -> list[str]:
        """Take out what waited for an item, in the order in which it came."""
        if not self.held_count:
            return []
        bodies = [
            body for (body,) in self._db.execute("SELECT body FROM held WHERE item_id = ? ORDER BY ticket", (item_id,))
        ]
        self._drop_held("item_id = ?", item_id)
        return bodies

    def give_up_before(self, ts: int) -> list[str]:
        """Drop events older than a time; the topics they came from."""
        return self._drop_held("ts < ?", ts) if self.held_count else []

    def give_up_oldest(self) -> list[str]:
        """Drop the event that waits longest; the topic it came from."""
        return self._drop_held("ticket = (SELECT min(ticket) FROM held)")

    def forget_held(self, user_id: str) -> list[str]:
        """Drop a user's events; the topics they came from."""
        return self._drop_held("user = ?", user_digest(user_id)) if self.held_count else []

    def held_by_topic(self) -> dict[str, int]:
        """How many wait."""
        return dict(self._db.execute("SELECT topic, count(*) FROM held GROUP BY topic")) if self.held_count else {}

    def _drop_held(self, where: str, *values: object) -> list[str]:
        rows = self._db.execute(f"DELETE FROM held WHERE {where} RETURNING topic", values).fetchall()  # noqa: S608
        self.held_count -= len(rows)
        return [topic for (topic,) in rows]

    # ---- event ids

    def saw(self, event_digest: bytes) -> None:
        """Remember the digest of an event id."""
        self._new_digests.append(event_digest)

    def digests(self, newest: int) -> list[bytes]:
        """The digests remembered last, oldest first; older ones are forgotten."""
        self.save()
        self.trim_digests(newest)
        return [found for (found,) in self._db.execute("SELECT digest FROM seen ORDER BY seq")]

    def trim_digests(self, newest: int) -> None:
        """Forget all but the digests remembered last."""
        last = self._one("SELECT max(seq) FROM seen") or 0
        self._db.execute("DELETE FROM seen WHERE seq <= ?", (last - newest,))

    def _one(self, query: str) -> int | None:
        value: int | None = self._db.execute(query).fetchone()[0]
        return value


def copy_store(source: Path, target: Path) -> None:
    """Copy what a store last committed, be it in use or not, and write nothing to it.

    Syncing the copy to disk is left to the caller.

    Raises:
        sqlite3.Error: the source is damaged, or the disk of the copy refused.
    """
    old, new = _connect_read_only(source), sqlite3.connect(target)
    try:
        new.execute("PRAGMA journal_mode=OFF")  # an unfinished copy is thrown away
        new.execute("PRAGMA synchronous=OFF")
        old.backup(new)
    finally:
        new.close()
        old.close()


def check_store(path: Path) -> dict[str, str]:
    """Check a store's file for damage without writing to it; its values of `JoinStore.meta`.

    Raises:
        sqlite3.Error: it is damaged, or no store.
    """
    with closing(_connect_read_only(path)) as db:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise JoinStoreError(found)
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return {}
        return dict(db.execute("SELECT key, value FROM meta"))


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a file without writing to it: its write-ahead log stays as it is, too."""
    in_use = path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.resolve().as_uri()}?mode=ro{'' if in_use else '&immutable=1'}"
    return sqlite3.connect(uri, uri=True)


def _digest(text: str) -> int:
    """64 bits of BLAKE2b, signed as SQLite has its integers."""
    return int.from_bytes(blake2b(text.encode(), digest_size=DIGEST_BYTES).digest(), "little", signed=True)


# A user comes again and again, and a click soon after what it answers.
user_digest = lru_cache(maxsize=65_536)(_digest)
request_digest = lru_cache(maxsize=65_536)(_digest)


_COLUMNS = "seq, ts, request, marks, body"


def _bits(marks: int, count: int) -> tuple[bool, ...]:
    return tuple([bool(marks >> index & 1) for index in range(count)]) if marks else (False,) * count


def _marks(shown: PendingImpression) -> str | None:
    return f"{shown.marks:x}" if shown.marks else None


def _packed(shown: PendingImpression) -> str:
    in_order = shown.positions == tuple(range(len(shown.positions)))
    positions = "" if in_order else ",".join(map(str, shown.positions))
    parts = (shown.topic, shown.user_id, shown.session_id or "", positions, shown.query or "", *shown.item_ids)
    text = _SEPARATOR.join(parts)
    return text if text.count(_SEPARATOR) == len(parts) - 1 else _AS_JSON + json.dumps(parts)


def _shown(seq: int, ts: int, request: int, marks: str | None, body: str) -> PendingImpression:
    parts = json.loads(body[1:]) if body.startswith(_AS_JSON) else body.split(_SEPARATOR)
    topic, user_id, session_id, positions, query, *item_ids = parts
    return PendingImpression(
        seq=seq,
        ts=ts,
        topic=topic,
        request=request,
        user_id=user_id,
        session_id=session_id or None,
        item_ids=tuple(item_ids),
        positions=tuple(map(int, positions.split(","))) if positions else tuple(range(len(item_ids))),
        query=query or None,
        marks=int(marks, 16) if marks else 0,
    )
