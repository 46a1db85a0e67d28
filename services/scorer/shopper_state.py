"""What shoppers have done lately: what any source of it does, and the worker's own reading of clicks and purchases."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from peft_adapters.ranking.shoppers import HISTORY_ITEMS, Shoppers
from services.scorer.bought import Bought
from streams.events import Click, Purchase, UserEvent
from streams.examples import Example
from streams.joiner import Joiner

Context = tuple[list[int], list[int]]  # catalogue rows, newest first, and how many sessions ago each was
Baskets = Sequence[Sequence[int]]  # catalogue rows of sessions, oldest session first, oldest item first


class StateSource(Protocol):
    """Where shoppers' states come from. One thread takes in what the log has, any number ask.

    Attributes:
        reads_events: Whether clicks and purchases of the log are to be taken in here.
    """

    reads_events: bool

    def __len__(self) -> int:
        """How many shoppers' states are held in this process."""

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Take in a click or a purchase."""

    def item_arrived(self, item_id: str) -> None:
        """Take in what waited for an item."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Drop what is known of a shopper, by pseudonym, and what may still be read of the time before."""

    def context(
        self,
        user_id: str | None,
        session_id: str | None,
        ts_ms: int,
        *,
        session: Sequence[int] | None = None,
        earlier: Baskets | None = None,
    ) -> Context:
        """What a ranking is made from.

        Args:
            user_id: Who asks, by pseudonym; None is a guest.
            session_id: The session at hand, likewise.
            ts_ms: When, epoch milliseconds.
            session: The session at hand, oldest first, in place of what is known of it.
            earlier: The sessions before it, in place of what is known of them.
        """

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Ids of what a shopper, by pseudonym, is known to have bought."""

    def problem(self) -> str | None:
        """What is wrong with the source at this moment, for whoever operates it; None where nothing is."""


def as_told(known: Context, *, session: Sequence[int] | None, earlier: Baskets | None) -> Context:
    """What is known of a shopper, with what a request says in its place."""
    if session is None and earlier is None:
        return known
    rows, ages = known
    earliest = bisect_left(ages, 1)  # of the sessions before the one at hand: the newest comes first
    at_hand = rows[:earliest] if session is None else list(reversed(session))
    if earlier is None:
        before, before_ages = rows[earliest:], ages[earliest:]
    else:
        baskets = [list(reversed(basket)) for basket in reversed(earlier)]
        before = [row for basket in baskets for row in basket]
        before_ages = [age for age, basket in enumerate(baskets, start=1) for _ in basket]
    return (at_hand + before)[:HISTORY_ITEMS], ([0] * len(at_hand) + before_ages)[:HISTORY_ITEMS]


class ShopperState:
    """Shoppers' states behind a lock: one thread takes in events, others ask.

    Events pass the same joiners as in the updater, so that both know the same: repeats are dropped, and an event of an
    item that has not come waits for it. Ids are pseudonyms but for those in events, which become so here.

    Args:
        rows: Row of each known item; another thread may add to it.
        max_shoppers: States held.
        pseudonymise: What becomes of ids of users and sessions in events.
    """

    reads_events = True

    def __init__(self, rows: Mapping[str, int], *, max_shoppers: int, pseudonymise: Callable[[str], str]) -> None:
        self._rows, self._pseudonymise = rows, pseudonymise
        self._shoppers = Shoppers(max_shoppers=max_shoppers)
        self._bought = Bought(max_shoppers=max_shoppers)
        self._joiners = {
            kind: Joiner(is_known=rows.__contains__, pseudonymise=pseudonymise) for kind in (Click, Purchase)
        }
        self._forgotten: dict[str, int] = {}  # who, and up to when in the log's time, epoch ms
        self._watermark_ms = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many shoppers are known."""
        return len(self._shoppers)

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Take in a click or a purchase."""
        joiner = self._joiners[type(event)]
        with self._lock:
            if self._forgotten and publish_ts_ms <= self._forgotten.get(self._pseudonymise(event.user_id), -1):
                return
            if isinstance(event, Purchase):
                self._bought.add(self._pseudonymise(event.user_id), event.item_id)
            self._update(joiner.offer(event, publish_ts_ms=publish_ts_ms))
            # Not after now: a clock that was ahead, a producer's or this machine's, must not let others' events expire.
            now_ms = time.time_ns() // 1_000_000
            self._watermark_ms = min(max(self._watermark_ms, min(event.ts, publish_ts_ms)), now_ms)
            joiner.advance(self._watermark_ms)

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Drop what is known of a shopper, and what may still be read of the time before.

        Args:
            user_id: Their pseudonym.
            until_ms: Publication time of the newest event to be forgotten, epoch milliseconds.
        """
        with self._lock:
            self._forgotten[user_id] = until_ms
            self._shoppers.forget(user_id)
            self._bought.forget(user_id)
            for joiner in self._joiners.values():
                joiner.forget(user_id)

    def item_arrived(self, item_id: str) -> None:
        """Take in what waited for an item."""
        with self._lock:
            for joiner in self._joiners.values():
                self._update(joiner.item_arrived(item_id))

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Ids of what a shopper, by pseudonym, is known to have bought."""
        with self._lock:
            return self._bought.of(user_id)

    def context(
        self,
        user_id: str | None,
        session_id: str | None,
        ts_ms: int,
        *,
        session: Sequence[int] | None = None,
        earlier: Baskets | None = None,
    ) -> Context:
        """What a ranking is made from; see `StateSource`."""
        known: Context = ([], [])
        if user_id is not None and (session is None or earlier is None):
            with self._lock:
                known = self._shoppers.context(user_id, session_id, ts_ms)
        return as_told(known, session=session, earlier=earlier)

    def problem(self) -> str | None:
        """None: what a worker holds itself is always there."""
        return None

    def _update(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._shoppers.update(example.user_id, example.session_id, example.ts, self._rows[example.item_id])
