"""Shoppers' states from Redis or Valkey, where `headwater state-writer` keeps them.

A request never waits longer than the timeout, and after one failure none waits at all: a thread checks every second
whether Redis answers again, belongs to this deployment, and is still written to. Until then, shoppers seen lately are
served from their last known state, and others as strangers.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import structlog

from peft_adapters.ranking.shoppers import History, Shoppers
from services.metrics.shopper_state import ShopperStateMetrics
from services.scorer.shopper_state import NOTHING, Baskets, with_request
from services.state.entries import Entry, unpack_entries
from services.state.errors import StateError, StateUnavailableError
from services.state.store import StateStore
from streams.events import Purchase, UserEvent

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
SILENT_SECONDS = 15.0  # longer than a take-over by a standby writer


class RedisState:
    """Reads the state of a shopper from the store at each request.

    Args:
        store: the store of states.
        rows: the row of each known item; another thread may add to it.
        fallback_shoppers: the number of states, of the shoppers seen last, kept for when the store is away.
        metrics: counts the reads.
    """

    reads_events = False

    def __init__(
        self, store: StateStore, rows: Mapping[str, int], *, fallback_shoppers: int, metrics: ShopperStateMetrics
    ) -> None:
        self._store, self._rows, self._metrics = store, rows, metrics
        self._fallback_shoppers = fallback_shoppers
        self._copies: OrderedDict[str, list[str]] = OrderedDict()  # entries as last read, newest first
        self._forgotten: dict[str, int] = {}  # by pseudonym: publication time of the newest event to forget, epoch ms
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem: str | None = "the store of shoppers' states has not been checked yet"
        self._is_away = True
        self._beat: str | None = None
        self._beat_changed = time.monotonic()

    def __len__(self) -> int:
        """Return the number of states kept for when the store is away."""
        return len(self._copies)

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Do nothing: the writer processes events."""

    def item_arrived(self, item_id: str) -> None:
        """Do nothing: items are looked up when a state is read."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Leave out the events of a shopper up to a time, even if the writer has not deleted them yet."""
        with self._lock:
            self._forgotten[user_id] = until_ms
            self._copies.pop(user_id, None)

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
            known = self._known(user_id, session_id, ts_ms)
        return with_request(known, session=session, earlier=earlier)

    def problem(self) -> str | None:
        """Return the last known problem of the store or its writer."""
        return self._problem

    # ---- availability of the store

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Check the store until stopped."""
        while not self._stop.is_set():
            self.check()
            self._stop.wait(CHECK_SECONDS)

    def check(self) -> None:
        """Check that the store answers, belongs to this deployment, and is written to."""
        try:
            beat = self._store.heartbeat()
        except StateError as error:
            self._set_problem(str(error), away=True)
            return
        if beat != self._beat:
            self._beat, self._beat_changed = beat, time.monotonic()
        silent_seconds = time.monotonic() - self._beat_changed
        if silent_seconds < SILENT_SECONDS:
            self._set_problem(None, away=False)
        else:
            self._set_problem(
                f"nothing was written for {SILENT_SECONDS:g} s or more; does `headwater state-writer` run?"
            )

    def _set_problem(self, problem: str | None, *, away: bool = False) -> None:
        """Record the problem, and log it if it is new."""
        if problem is None and self._problem is not None:
            log.info("state_store_there")
        elif problem is not None and problem != self._problem:
            log.warning("state_store_problem", problem=problem, goes_on="with what is held")
        self._problem, self._is_away = problem, away
        self._metrics.show_available(available=problem is None)

    # ---- reads

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Return the ids of items that a shopper, by pseudonym, is known to have bought, newest last."""
        entries = self._from_store(self._store.bought, user_id)
        if entries is None:
            entries = self._from_copy(user_id)
        ids = [entry.item_id for entry in self._entries(user_id, entries) if entry.kind == Purchase.KIND]
        return tuple(dict.fromkeys(ids))

    def _known(self, user_id: str, session_id: str | None, ts_ms: int) -> History:
        entries = self._from_store(self._store.entries, user_id)
        if entries is None:
            entries = self._from_copy(user_id)
        else:
            self._keep_copy(user_id, entries)
        shopper = Shoppers(max_shoppers=1)
        for entry in self._entries(user_id, entries):
            row = self._rows.get(entry.item_id)
            if row is not None:
                shopper.update(user_id, entry.session_id, entry.ts_ms, row)
        return shopper.context(user_id, session_id, ts_ms)

    def _entries(self, user_id: str, packed: Sequence[str]) -> list[Entry]:
        """Return distinct entries, oldest first, without those to forget."""
        unpacked, refused = unpack_entries(packed)
        self._metrics.entries_refused(refused)
        after_ms = self._forgotten.get(user_id, -1)
        oldest_first = reversed([entry for entry in unpacked if entry.publish_ts_ms > after_ms])
        return list({entry.event: entry for entry in oldest_first}.values())

    def _from_store(self, read: Callable[[str], list[str]], user_id: str) -> list[str] | None:
        """Return the entries of a shopper in the store; None if it does not answer."""
        if self._is_away:
            return None
        began = time.perf_counter()
        try:
            entries = read(user_id)
        except StateUnavailableError as error:
            self._set_problem(str(error), away=True)
            return None
        except StateError as error:  # concerns this shopper alone
            log.warning("state_refused", problem=str(error))
            return None
        self._metrics.read_from_store(seconds=time.perf_counter() - began)
        return entries

    def _keep_copy(self, user_id: str, entries: list[str]) -> None:
        """Keep a shopper's entries for when the store is away."""
        with self._lock:
            self._copies.pop(user_id, None)
            if entries:
                self._copies[user_id] = entries
            if len(self._copies) > self._fallback_shoppers:
                self._copies.popitem(last=False)

    def _from_copy(self, user_id: str) -> list[str]:
        """Return a shopper's entries as the store last returned them."""
        with self._lock:
            entries = self._copies.get(user_id)
        self._metrics.read_from_copy(found=entries is not None)
        return entries or []
