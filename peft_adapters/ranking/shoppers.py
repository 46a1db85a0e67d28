"""Recent items of each shopper, and the context of a ranking that follows from them.

The state changes with every event, not with every adapter. A scorer maintains its own copy from the same events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HISTORY_ITEMS = 128  # newest items kept per shopper
PASSED_ITEMS = 64  # newest passed-over items (shown and not clicked) kept per shopper
UNKNOWN_GAP_MS = 24 * 60 * 60 * 1000  # between two sessions whose times are not known
SESSION_GAP_MS = 30 * 60 * 1000  # without a session id, a pause of this length starts a new session


class History(NamedTuple):
    """Recent items of one shopper, newest first, as of a request.

    Attributes:
        items: catalogue rows of the items.
        ages: for each item, 0 for the current session, 1 for the one before it, and so on.
        elapsed_ms: for each item, the time from its event to the request; 0 for one that a clock puts later.
    """

    items: list[int]
    ages: list[int]
    elapsed_ms: list[int]


@dataclass(frozen=True, slots=True)
class Contexts:
    """Recent items of some shoppers, newest first, with their ages in sessions, and their passed-over items.

    Attributes:
        items: [contexts, items] catalogue rows, -1 for padding.
        ages: [contexts, items] 0 for the current session, 1 for the one before it (the last basket), and so on; -1 for
            padding.
        passed: [contexts, passed] rows of items shown and not clicked, newest first, -1 for padding.
        elapsed_ms: [contexts, items] time from each item's event to the request, -1 for padding.
    """

    items: npt.NDArray[np.int64]
    ages: npt.NDArray[np.int64]
    passed: npt.NDArray[np.int64]
    elapsed_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.items)

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the sorted distinct rows [rows] of all items, passed-over ones included."""
        rows = np.concatenate([self.items.ravel(), self.passed.ravel()])
        return np.unique(rows[rows >= 0])

    def part(self, kept: slice | npt.NDArray[np.int64]) -> Contexts:
        """Return some of the contexts, by a slice or by indices."""
        return Contexts(self.items[kept], self.ages[kept], self.passed[kept], self.elapsed_ms[kept])


class _Shopper:
    """Items and sessions of one shopper."""

    __slots__ = ("items", "keys", "passed", "passed_ms", "session", "sessions", "times_ms")

    def __init__(self) -> None:
        self.items: list[int] = []  # oldest first
        self.sessions: list[int] = []  # ordinal of the session each item belongs to
        self.times_ms: list[int] = []  # event time of each item
        self.session = 0
        self.keys: list[str | None] = [None]  # ids of the newest sessions, the current one last
        self.passed: list[int] = []  # items shown and not clicked, oldest first
        self.passed_ms: list[int] = []  # event time at which each was shown

    def continues_session(self, session_key: str | None, ts_ms: int, newest: int) -> bool:
        """Return whether an event belongs to the session of the item at index `newest`."""
        newest_key = self.keys[self.sessions[newest] - self.session - 1]
        if session_key is not None and newest_key is not None:
            return session_key == newest_key
        return ts_ms - self.times_ms[newest] < SESSION_GAP_MS

    def indices_before(self, before_ms: int) -> list[int]:
        """Return the indices of the items before a time, oldest first."""
        return [index for index, ts_ms in enumerate(self.times_ms) if ts_ms < before_ms]

    def add(self, session_key: str | None, ts_ms: int, item: int) -> None:
        if self.items and not self.continues_session(session_key, ts_ms, -1):
            self.session += 1
            self.keys.append(None)
        self.keys[-1] = session_key
        self.items.append(item)
        self.sessions.append(self.session)
        self.times_ms.append(ts_ms)
        if len(self.items) > HISTORY_ITEMS:
            del self.items[0], self.sessions[0], self.times_ms[0]
            del self.keys[: len(self.keys) - 1 - (self.session - self.sessions[0])]

    def state_dict(self) -> list[Any]:
        lists = (self.items, self.sessions, self.times_ms, self.keys, self.passed, self.passed_ms)
        return [self.session, *(list(values) for values in lists)]

    def load_state_dict(self, state: list[Any]) -> None:
        self.session, *lists = state
        self.items, self.sessions, self.times_ms, self.keys, self.passed, self.passed_ms = (
            list(values) for values in lists
        )


class Shoppers:
    """Recent items of a bounded number of shoppers; the least recently active one is dropped first.

    Args:
        max_shoppers: largest number of shoppers to keep.
    """

    def __init__(self, *, max_shoppers: int = 200_000) -> None:
        self._max_shoppers = max_shoppers
        self._shoppers: OrderedDict[str, _Shopper] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of shoppers."""
        return len(self._shoppers)

    def __contains__(self, user_id: object) -> bool:
        """Return whether a shopper has a state."""
        return user_id in self._shoppers

    def context(self, user_id: str, session_key: str | None, ts_ms: int, *, only_before: bool = False) -> History:
        """Return the shopper's recent items.

        Args:
            user_id: id of the shopper.
            session_key: id of the current session; None if it has none.
            ts_ms: event time of the request, which decides whether the session continues.
            only_before: ignore items at or after `ts_ms`, for requests evaluated after later events.
        """
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return History([], [], [])
        items, sessions, newest = shopper.items, shopper.sessions, len(shopper.items) - 1
        times_ms = shopper.times_ms
        if only_before:
            indices = shopper.indices_before(ts_ms)
            items, sessions, times_ms = ([values[index] for index in indices] for values in (items, sessions, times_ms))
            newest = indices[-1] if indices else newest
        if not items:
            return History([], [], [])
        session = sessions[-1] + (0 if shopper.continues_session(session_key, ts_ms, newest) else 1)
        return History(
            items[::-1],
            [session - ordinal for ordinal in reversed(sessions)],
            [max(0, ts_ms - event_ms) for event_ms in reversed(times_ms)],
        )

    def session_before(self, user_id: str, session_key: str | None, ts_ms: int, *, limit: int) -> list[int]:
        """Return the newest items of the current session, newest first; counters pair a new event with them."""
        shopper = self._shoppers.get(user_id)
        if shopper is None or not shopper.continues_session(session_key, ts_ms, -1):
            return []
        return _session_up_to(shopper, len(shopper.items), shopper.session, limit)

    def session_key_of(self, user_id: str) -> int:
        """Return a key of the shopper's newest session, which identifies it in `SessionNeighbours` and nowhere else.

        It is derived from the shopper and the number of the session, so that nothing has to be kept for it.

        Raises:
            KeyError: the shopper has no state.
        """
        return _session_key(user_id, self._shoppers[user_id].session)

    def session_keys_of(self, user_id: str) -> list[int]:
        """Return the keys of all sessions of a shopper so far, those included whose items are no longer kept."""
        shopper = self._shoppers.get(user_id)
        return [] if shopper is None else [_session_key(user_id, number) for number in range(shopper.session + 1)]

    def since(self, user_id: str, ts_ms: int, *, limit: int) -> list[tuple[int, list[int]]]:
        """Return the items at or after a time, each with the items that `session_before` returned before it."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return []
        return [
            (shopper.items[index], _session_up_to(shopper, index, shopper.sessions[index], limit))
            for index, item_ts_ms in enumerate(shopper.times_ms)
            if item_ts_ms >= ts_ms
        ]

    def update(self, user_id: str, session_key: str | None, ts_ms: int, item: int) -> None:
        """Add the item of one event."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            shopper = self._shoppers[user_id] = _Shopper()
            if len(self._shoppers) > self._max_shoppers:
                self._shoppers.popitem(last=False)
        self._shoppers.move_to_end(user_id)
        shopper.add(session_key, ts_ms, item)

    def passed_over(self, user_id: str, ts_ms: int, *, only_before: bool = False) -> list[int]:
        """Return the shopper's passed-over items, newest first; arguments as in `context`."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return []
        newest_first = zip(reversed(shopper.passed), reversed(shopper.passed_ms), strict=True)
        return [item for item, shown_ms in newest_first if shown_ms < ts_ms or not only_before]

    def pass_over(self, user_id: str, ts_ms: int, items: Sequence[int]) -> None:
        """Add the items of a list that a shopper was shown and did not click, in the list's order.

        A shopper without a state gets none: only shoppers with events have one.
        """
        shopper = self._shoppers.get(user_id)
        if shopper is not None:
            shopper.passed = [*shopper.passed, *items][-PASSED_ITEMS:]
            shopper.passed_ms = [*shopper.passed_ms, *[ts_ms] * len(items)][-PASSED_ITEMS:]

    def forget(self, user_id: str) -> bool:
        """Delete a shopper's state, and return whether there was one."""
        return self._shoppers.pop(user_id, None) is not None

    def state_dict(self) -> dict[str, Any]:
        """Return all states as JSON-serialisable lists, the least recently active shopper first."""
        return {user: shopper.state_dict() for user, shopper in self._shoppers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self._shoppers.clear()
        for user, shopper_state in state.items():
            shopper = self._shoppers[user] = _Shopper()
            shopper.load_state_dict(shopper_state)


def _session_key(user_id: str, number: int) -> int:
    """Return a 64-bit digest other than 0, which `SessionNeighbours` keeps for "no session"."""
    digest = blake2b(f"{number}/{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _session_up_to(shopper: _Shopper, end: int, session: int, limit: int) -> list[int]:
    """Return the items of a session before index `end`, newest first, at most `limit`."""
    newest: list[int] = []
    for index in range(end - 1, -1, -1):
        if shopper.sessions[index] != session or len(newest) == limit:
            break
        newest.append(shopper.items[index])
    return newest


def pad(rows: Sequence[Sequence[list[int]]], passed: Sequence[list[int]] | None = None) -> Contexts:
    """Return padded contexts.

    Args:
        rows: items and ages of each context, newest first, and their elapsed times (ms), which are 0 if left out.
        passed: passed-over items of each context, newest first; None if there are none.
    """
    return Contexts(
        _padded([row[0] for row in rows]),
        _padded([row[1] for row in rows]),
        _padded([[]] * len(rows) if passed is None else passed),
        _padded([row[2] if len(row) > 2 else [0] * len(row[0]) for row in rows]),
    )


def _padded(rows: Sequence[list[int]]) -> npt.NDArray[np.int64]:
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
