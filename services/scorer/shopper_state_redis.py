"""Shoppers' states from Redis or Valkey, where `headwater state-writer` keeps them.

A request never waits longer than the time allowed, and after one failure none waits at all: a thread of its own looks
every second whether Redis is there again, holds what it should, and is still written to. Meanwhile shoppers seen lately
are answered from what they were then, and others as strangers.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import structlog

from peft_adapters.ranking.shoppers import Shoppers
from services.metrics.shopper_state import ShopperStateMetrics
from services.scorer.shopper_state import Baskets, Context, as_told
from services.state.entries import Entry, unpack_entries
from services.state.errors import StateError, StateUnavailableError
from services.state.store import StateStore
from streams.events import Purchase, UserEvent

log = structlog.get_logger(__name__)

CHECK_SECONDS = 1.0
SILENT_SECONDS = 15.0  # a writer that another one takes over from is silent for less


class RedisState:
    """Reads shoppers' states when they are asked for.

    Args:
        store: Where they are.
        rows: Row of each known item; another thread may add to it.
        fallback_shoppers: States held for when the store is away, of the shoppers seen last.
        metrics: Where to count.
    """

    reads_events = False

    def __init__(
        self, store: StateStore, rows: Mapping[str, int], *, fallback_shoppers: int, metrics: ShopperStateMetrics
    ) -> None:
        self._store, self._rows, self._metrics = store, rows, metrics
        self._fallback_shoppers = fallback_shoppers
        self._held: OrderedDict[str, list[str]] = OrderedDict()  # as last read, newest first
        self._forgotten: dict[str, int] = {}  # who, and up to when in the log's time, epoch ms
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem: str | None = "the store of shoppers' states has not been asked yet"
        self._is_away = True
        self._beat: str | None = None
        self._heard = time.monotonic()  # when the beat was last another

    def __len__(self) -> int:
        """How many states are held for when the store is away."""
        return len(self._held)

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Nothing: the writer does."""

    def item_arrived(self, item_id: str) -> None:
        """Nothing waits: items are looked up when a state is asked for."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Leave out what a shopper did before, whether or not the writer has dropped it yet."""
        with self._lock:
            self._forgotten[user_id] = until_ms
            self._held.pop(user_id, None)

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
            known = self._known(user_id, session_id, ts_ms)
        return as_told(known, session=session, earlier=earlier)

    def problem(self) -> str | None:
        """What was last found wrong with the store, or with what writes to it."""
        return self._problem

    # ---- whether the store is there

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Look after the store until stopped."""
        while not self._stop.is_set():
            self.check()
            self._stop.wait(CHECK_SECONDS)

    def check(self) -> None:
        """Look whether the store is there, holds what it should, and is written to."""
        try:
            beat = self._store.heartbeat()
        except StateError as error:
            self._found(str(error), away=True)
            return
        if beat != self._beat:
            self._beat, self._heard = beat, time.monotonic()
        silent_seconds = time.monotonic() - self._heard
        if silent_seconds < SILENT_SECONDS:
            self._found(None, away=False)
        else:
            self._found(f"nothing was written for {SILENT_SECONDS:g} s or more; does `headwater state-writer` run?")

    def _found(self, problem: str | None, *, away: bool = False) -> None:
        """Note what is wrong, and say so once each time."""
        if problem is None and self._problem is not None:
            log.info("state_store_there")
        elif problem is not None and problem != self._problem:
            log.warning("state_store_problem", problem=problem, goes_on="with what is held")
        self._problem, self._is_away = problem, away
        self._metrics.show_available(available=problem is None)

    # ---- what is known

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Ids of what a shopper, by pseudonym, is known to have bought, the newest last."""
        entries = self._asked(self._store.bought, user_id)
        if entries is None:
            entries = self._held_of(user_id)
        ids = [entry.item_id for entry in self._entries(user_id, entries) if entry.kind == Purchase.KIND]
        return tuple(dict.fromkeys(ids))

    def _known(self, user_id: str, session_id: str | None, ts_ms: int) -> Context:
        entries = self._asked(self._store.entries, user_id)
        if entries is None:
            entries = self._held_of(user_id)
        else:
            self._hold(user_id, entries)
        one = Shoppers(max_shoppers=1)
        for entry in self._entries(user_id, entries):
            row = self._rows.get(entry.item_id)
            if row is not None:
                one.update(user_id, entry.session_id, entry.ts_ms, row)
        return one.context(user_id, session_id, ts_ms)

    def _entries(self, user_id: str, packed: Sequence[str]) -> list[Entry]:
        """Entries once each, oldest first, without what is to be forgotten."""
        found, refused = unpack_entries(packed)
        self._metrics.entries_refused(refused)
        after_ms = self._forgotten.get(user_id, -1)
        oldest_first = reversed([entry for entry in found if entry.publish_ts_ms > after_ms])
        return list({entry.event: entry for entry in oldest_first}.values())

    def _asked(self, ask: Callable[[str], list[str]], user_id: str) -> list[str] | None:
        """What the store has of a shopper; None where it does not say."""
        if self._is_away:
            return None
        began = time.perf_counter()
        try:
            entries = ask(user_id)
        except StateUnavailableError as error:
            self._found(str(error), away=True)
            return None
        except StateError as error:  # of this shopper alone
            log.warning("state_refused", problem=str(error))
            return None
        self._metrics.read_from_store(seconds=time.perf_counter() - began)
        return entries

    def _hold(self, user_id: str, entries: list[str]) -> None:
        """Keep a shopper's entries for when the store is away."""
        with self._lock:
            self._held.pop(user_id, None)
            if entries:
                self._held[user_id] = entries
            if len(self._held) > self._fallback_shoppers:
                self._held.popitem(last=False)

    def _held_of(self, user_id: str) -> list[str]:
        """A shopper's entries as they were when the store last gave them."""
        with self._lock:
            held = self._held.get(user_id)
        self._metrics.read_from_copy(found=held is not None)
        return held or []
