"""What each shopper has done lately, and the context of a ranking that follows from it.

The state changes with every event, not with every adapter; a scorer keeps its own from the same events.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HISTORY_ITEMS = 128  # newest items kept a shopper
SESSION_GAP_MS = 30 * 60 * 1000  # without a session id, a pause this long begins a new session


@dataclass(frozen=True, slots=True)
class Contexts:
    """Newest-first items of some shoppers, and how many sessions ago each was.

    Attributes:
        items: [contexts, items] catalogue rows, -1 where there is none.
        ages: [contexts, items] 0 = the session at hand, 1 = the one before it (the last basket), and so on.
    """

    items: npt.NDArray[np.int64]
    ages: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Contexts."""
        return len(self.items)


class _Shopper:
    __slots__ = ("items", "last_ts_ms", "session", "session_key", "sessions")

    def __init__(self) -> None:
        self.items: list[int] = []  # oldest first
        self.sessions: list[int] = []  # ordinal of the session each item belongs to
        self.session = 0
        self.session_key: str | None = None
        self.last_ts_ms = 0

    def goes_on(self, session_key: str | None, ts_ms: int) -> bool:
        if session_key is not None and self.session_key is not None:
            return session_key == self.session_key
        return ts_ms - self.last_ts_ms < SESSION_GAP_MS


class Shoppers:
    """Bounded state of shoppers, the least recently seen forgotten first."""

    def __init__(self, *, max_shoppers: int = 200_000) -> None:
        self._max_shoppers = max_shoppers
        self._shoppers: OrderedDict[str, _Shopper] = OrderedDict()

    def __len__(self) -> int:
        """Shoppers remembered."""
        return len(self._shoppers)

    def __contains__(self, user_id: object) -> bool:
        """Whether a shopper is remembered."""
        return user_id in self._shoppers

    def context(self, user_id: str, session_key: str | None, ts_ms: int) -> tuple[list[int], list[int]]:
        """Items of the shopper, newest first, and their ages in sessions, as of now."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return [], []
        session = shopper.session + (0 if shopper.goes_on(session_key, ts_ms) else 1)
        return shopper.items[::-1], [session - s for s in reversed(shopper.sessions)]

    def session_before(self, user_id: str, session_key: str | None, ts_ms: int, *, limit: int) -> list[int]:
        """The newest items of the session at hand, newest first: what counters pair a new event with."""
        shopper = self._shoppers.get(user_id)
        if shopper is None or not shopper.goes_on(session_key, ts_ms):
            return []
        newest: list[int] = []
        for item, session in zip(reversed(shopper.items), reversed(shopper.sessions), strict=True):
            if session != shopper.session or len(newest) == limit:
                break
            newest.append(item)
        return newest

    def update(self, user_id: str, session_key: str | None, ts_ms: int, item: int) -> None:
        """Take in one event."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            shopper = self._shoppers[user_id] = _Shopper()
            if len(self._shoppers) > self._max_shoppers:
                self._shoppers.popitem(last=False)
        elif not shopper.goes_on(session_key, ts_ms):
            shopper.session += 1
        self._shoppers.move_to_end(user_id)
        shopper.session_key, shopper.last_ts_ms = session_key, ts_ms
        shopper.items.append(item)
        shopper.sessions.append(shopper.session)
        if len(shopper.items) > HISTORY_ITEMS:
            del shopper.items[0], shopper.sessions[0]

    def state(self) -> dict[str, Any]:
        """Everything, as JSON can hold it, in order of last sight."""
        return {
            user: [list(s.items), list(s.sessions), s.session, s.session_key, s.last_ts_ms]
            for user, s in self._shoppers.items()
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._shoppers.clear()
        for user, fields in state.items():
            shopper = self._shoppers[user] = _Shopper()
            items, sessions, shopper.session, shopper.session_key, shopper.last_ts_ms = fields
            shopper.items, shopper.sessions = list(items), list(sessions)


def pad(rows: list[tuple[list[int], list[int]]]) -> Contexts:
    """Contexts of ragged (items, ages) pairs."""
    width = max((len(items) for items, _ in rows), default=0)
    items = np.full((len(rows), width), -1, dtype=np.int64)
    ages = np.full((len(rows), width), -1, dtype=np.int64)
    for index, (own_items, own_ages) in enumerate(rows):
        items[index, : len(own_items)] = own_items
        ages[index, : len(own_ages)] = own_ages
    return Contexts(items, ages)
