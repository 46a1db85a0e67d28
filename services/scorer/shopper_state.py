"""States of shoppers: the interface of their sources, and the source that reads clicks and purchases itself."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from peft_adapters.ranking.shoppers import HISTORY_ITEMS, UNKNOWN_GAP_MS, History, Shoppers
from services.scorer.bought import Bought
from streams.events import Click, Purchase, UserEvent
from streams.examples import Example
from streams.joiner import Joiner

NOTHING = History([], [], [])

Baskets = Sequence[Sequence[int]]  # catalogue rows of sessions, oldest session first, oldest item first


class StateSource(Protocol):
    """A source of shoppers' states. One thread updates it from the log, any thread reads.

    Attributes:
        reads_events: whether the source is updated from clicks and purchases of the log.
    """

    reads_events: bool

    def __len__(self) -> int:
        """Return the number of states held in this process."""

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Update the state with a click or a purchase."""

    def item_arrived(self, item_id: str) -> None:
        """Process the events that waited for an item."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Forget a shopper, by pseudonym, and their events up to a time, including those not read yet."""

    def context(
        self,
        user_id: str | None,
        session_id: str | None,
        ts_ms: int,
        *,
        session: Sequence[int] | None = None,
        earlier: Baskets | None = None,
    ) -> History:
        """Return the history that a ranking uses.

        Args:
            user_id: the pseudonym of the shopper; None for a guest.
            session_id: the pseudonym of the session, if it is known.
            ts_ms: the time of the request, epoch milliseconds.
            session: the items of the current session, oldest first; they replace what is known of it.
            earlier: the items of earlier sessions; they replace what is known of them.
        """

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Return the ids of items that a shopper, by pseudonym, is known to have bought."""

    def problem(self) -> str | None:
        """Return the present problem of the source, for operators; None if there is none."""


def with_request(known: History, *, session: Sequence[int] | None, earlier: Baskets | None) -> History:
    """Return the known history of a shopper, with the parts that a request states replaced.

    A request states no times: the items of the session are taken to be of now, and earlier sessions a day apart.
    """
    if session is None and earlier is None:
        return known
    rows, ages, elapsed_ms = known
    current_end = bisect_left(ages, 1)  # end of the current session: the newest item comes first
    current = rows[:current_end] if session is None else list(reversed(session))
    if earlier is None:
        before, before_ages, before_ms = rows[current_end:], ages[current_end:], elapsed_ms[current_end:]
    else:
        baskets = [list(reversed(basket)) for basket in reversed(earlier)]
        before = [row for basket in baskets for row in basket]
        before_ages = [age for age, basket in enumerate(baskets, start=1) for _ in basket]
        before_ms = [age * UNKNOWN_GAP_MS for age in before_ages]
    current_ms = elapsed_ms[:current_end] if session is None else [0] * len(current)
    return History(
        (current + before)[:HISTORY_ITEMS],
        ([0] * len(current) + before_ages)[:HISTORY_ITEMS],
        (current_ms + before_ms)[:HISTORY_ITEMS],
    )


class ShopperState:
    """States in memory, behind a lock.

    Events pass the same joiners as in the updater, so that both know the same: repeats are dropped, and an event whose
    item is unknown waits for it. Ids are pseudonyms, except in events, where they are replaced here.

    Args:
        rows: the row of each known item; another thread may add to it.
        max_shoppers: the number of states held.
        pseudonymise: replaces the ids of users and sessions in events.
    """

    reads_events = True

    def __init__(self, rows: Mapping[str, int], *, max_shoppers: int, pseudonymise: Callable[[str], str]) -> None:
        self._rows, self._pseudonymise = rows, pseudonymise
        self._shoppers = Shoppers(max_shoppers=max_shoppers)
        self._bought = Bought(max_shoppers=max_shoppers)
        self._joiners = {
            kind: Joiner(is_known=rows.__contains__, pseudonymise=pseudonymise) for kind in (Click, Purchase)
        }
        self._forgotten: dict[str, int] = {}  # by pseudonym: publication time of the newest event to forget, epoch ms
        self._watermark_ms = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of shoppers known."""
        return len(self._shoppers)

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Update the state with a click or a purchase."""
        joiner = self._joiners[type(event)]
        with self._lock:
            if self._forgotten and publish_ts_ms <= self._forgotten.get(self._pseudonymise(event.user_id), -1):
                return
            if isinstance(event, Purchase):
                self._bought.add(self._pseudonymise(event.user_id), event.item_id)
            self._update(joiner.offer(event, publish_ts_ms=publish_ts_ms))
            # At most now: a clock that was ahead must not expire the events of others.
            now_ms = time.time_ns() // 1_000_000
            self._watermark_ms = min(max(self._watermark_ms, min(event.ts, publish_ts_ms)), now_ms)
            joiner.advance(self._watermark_ms)

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Forget a shopper and their events up to a time, including those not read yet.

        Args:
            user_id: the pseudonym of the shopper.
            until_ms: the publication time of the newest event to forget, epoch milliseconds.
        """
        with self._lock:
            self._forgotten[user_id] = until_ms
            self._shoppers.forget(user_id)
            self._bought.forget(user_id)
            for joiner in self._joiners.values():
                joiner.forget(user_id)

    def item_arrived(self, item_id: str) -> None:
        """Process the events that waited for an item."""
        with self._lock:
            for joiner in self._joiners.values():
                self._update(joiner.item_arrived(item_id))

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Return the ids of items that a shopper, by pseudonym, is known to have bought."""
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
    ) -> History:
        """Return the history that a ranking uses; see `StateSource`."""
        known = NOTHING
        if user_id is not None and (session is None or earlier is None):
            with self._lock:
                known = self._shoppers.context(user_id, session_id, ts_ms)
        return with_request(known, session=session, earlier=earlier)

    def problem(self) -> str | None:
        """Return None: a state in memory is always available."""
        return None

    def _update(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._shoppers.update(example.user_id, example.session_id, example.ts, self._rows[example.item_id])
