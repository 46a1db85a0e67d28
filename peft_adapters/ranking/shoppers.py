"""What each shopper has done lately, and the context of a ranking that follows from it.

The state changes with every event, not with every adapter; a scorer keeps its own from the same events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HISTORY_ITEMS = 128  # newest items kept a shopper
PASSED_ITEMS = 64  # the same of what was shown and passed over
SESSION_GAP_MS = 30 * 60 * 1000  # without a session id, a pause this long begins a new session


@dataclass(frozen=True, slots=True)
class Contexts:
    """Newest-first items of some shoppers, how many sessions ago each was, and what they passed over.

    Attributes:
        items: [contexts, items] catalogue rows, -1 where there is none.
        ages: [contexts, items] 0 = the session at hand, 1 = the one before it (the last basket), and so on.
        passed: [contexts, passed] rows of what was shown and not clicked, newest first, -1 where there is none.
    """

    items: npt.NDArray[np.int64]
    ages: npt.NDArray[np.int64]
    passed: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Contexts."""
        return len(self.items)

    def rows(self) -> npt.NDArray[np.int64]:
        """The distinct items, what was passed over included, sorted."""
        rows = np.concatenate([self.items.ravel(), self.passed.ravel()])
        return np.unique(rows[rows >= 0])


class _Shopper:
    __slots__ = ("items", "keys", "passed", "passed_ms", "session", "sessions", "times_ms")

    def __init__(self) -> None:
        self.items: list[int] = []  # oldest first
        self.sessions: list[int] = []  # ordinal of the session each item belongs to
        self.times_ms: list[int] = []  # event time of each item
        self.session = 0
        self.keys: list[str | None] = [None]  # ids of the newest sessions, the one at hand last
        self.passed: list[int] = []  # items shown and not clicked, oldest first
        self.passed_ms: list[int] = []  # event time at which each was shown

    def goes_on(self, session_key: str | None, ts_ms: int, newest: int) -> bool:
        """Whether something belongs to the session of the item at index `newest`."""
        own_key = self.keys[self.sessions[newest] - self.session - 1]
        if session_key is not None and own_key is not None:
            return session_key == own_key
        return ts_ms - self.times_ms[newest] < SESSION_GAP_MS

    def seen(self, before_ms: int) -> list[int]:
        """Indices of the items that came before a time, oldest first."""
        return [index for index, ts_ms in enumerate(self.times_ms) if ts_ms < before_ms]

    def take_in(self, session_key: str | None, ts_ms: int, item: int) -> None:
        if self.items and not self.goes_on(session_key, ts_ms, -1):
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
        return [self.session, *(list(own) for own in lists)]

    def load_state_dict(self, state: list[Any]) -> None:
        self.session, *lists = state
        self.items, self.sessions, self.times_ms, self.keys, self.passed, self.passed_ms = (list(own) for own in lists)


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

    def context(
        self, user_id: str, session_key: str | None, ts_ms: int, *, only_before: bool = False
    ) -> tuple[list[int], list[int]]:
        """Items of the shopper, newest first, and their ages in sessions.

        Args:
            user_id: who.
            session_key: id of the session at hand.
            ts_ms: when.
            only_before: as of `ts_ms`, for what is looked at after the shopper has gone on; else as of now.
        """
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return [], []
        items, sessions, newest = shopper.items, shopper.sessions, len(shopper.items) - 1
        if only_before:
            seen = shopper.seen(ts_ms)
            items, sessions = [items[index] for index in seen], [sessions[index] for index in seen]
            newest = seen[-1] if seen else newest
        if not items:
            return [], []
        session = sessions[-1] + (0 if shopper.goes_on(session_key, ts_ms, newest) else 1)
        return items[::-1], [session - own for own in reversed(sessions)]

    def session_before(self, user_id: str, session_key: str | None, ts_ms: int, *, limit: int) -> list[int]:
        """The newest items of the session at hand, newest first: what counters pair a new event with."""
        shopper = self._shoppers.get(user_id)
        if shopper is None or not shopper.goes_on(session_key, ts_ms, -1):
            return []
        return _session_up_to(shopper, len(shopper.items), shopper.session, limit)

    def since(self, user_id: str, ts_ms: int, *, limit: int) -> list[tuple[int, list[int]]]:
        """Items that came at or after a time, each with what `session_before` had given before it."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return []
        return [
            (shopper.items[index], _session_up_to(shopper, index, shopper.sessions[index], limit))
            for index, item_ts_ms in enumerate(shopper.times_ms)
            if item_ts_ms >= ts_ms
        ]

    def update(self, user_id: str, session_key: str | None, ts_ms: int, item: int) -> None:
        """Take in one event."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            shopper = self._shoppers[user_id] = _Shopper()
            if len(self._shoppers) > self._max_shoppers:
                self._shoppers.popitem(last=False)
        self._shoppers.move_to_end(user_id)
        shopper.take_in(session_key, ts_ms, item)

    def passed_over(self, user_id: str, ts_ms: int, *, only_before: bool = False) -> list[int]:
        """What the shopper was shown and did not click, newest first; arguments as of `context`."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            return []
        newest_first = zip(reversed(shopper.passed), reversed(shopper.passed_ms), strict=True)
        return [item for item, shown_ms in newest_first if shown_ms < ts_ms or not only_before]

    def pass_over(self, user_id: str, ts_ms: int, items: Sequence[int]) -> None:
        """Take in what a shopper who did click on something was shown at a time and passed over, in its order.

        Of a shopper who is not remembered nothing is kept.
        """
        shopper = self._shoppers.get(user_id)
        if shopper is not None:
            shopper.passed = [*shopper.passed, *items][-PASSED_ITEMS:]
            shopper.passed_ms = [*shopper.passed_ms, *[ts_ms] * len(items)][-PASSED_ITEMS:]

    def forget(self, user_id: str) -> bool:
        """Drop a shopper; whether there was one."""
        return self._shoppers.pop(user_id, None) is not None

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it, in order of last sight."""
        return {user: shopper.state_dict() for user, shopper in self._shoppers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._shoppers.clear()
        for user, own in state.items():
            shopper = self._shoppers[user] = _Shopper()
            shopper.load_state_dict(own)


def _session_up_to(shopper: _Shopper, end: int, session: int, limit: int) -> list[int]:
    """Items of a session before index `end`, newest first, at most `limit`."""
    newest: list[int] = []
    for index in range(end - 1, -1, -1):
        if shopper.sessions[index] != session or len(newest) == limit:
            break
        newest.append(shopper.items[index])
    return newest


def pad(rows: Sequence[tuple[list[int], list[int]]], passed: Sequence[list[int]] | None = None) -> Contexts:
    """Contexts of ragged (items, ages) pairs, and of what was passed over where that is known."""
    return Contexts(
        _padded([items for items, _ in rows]),
        _padded([ages for _, ages in rows]),
        _padded([[]] * len(rows) if passed is None else passed),
    )


def _padded(rows: Sequence[list[int]]) -> npt.NDArray[np.int64]:
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
