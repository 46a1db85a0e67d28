"""The choice of scenarios that a worker holds: pinned ones, and those that requests ask for."""

import threading
import time
from collections.abc import Sequence

from services.scorer.announcements import Announcements
from services.scorer.serving_table import ServingTable

UNPUBLISHED_SECONDS = 10.0  # for so long a scenario without a publication is not looked up again
MOST_UNPUBLISHED = 1_000  # names remembered
MOST_REQUESTED = 16  # names requested and not yet looked up


class Scenarios:
    """Loads scenarios on request and drops the least recently used. Any thread requests; the worker's opens and drops.

    Args:
        table: the models that are served.
        announcements: follows the scenarios that are held.
        pinned: the scenarios that are never dropped, the default one first.
        most: the number of scenarios held at a time, including the pinned ones.
    """

    def __init__(self, table: ServingTable, announcements: Announcements, *, pinned: Sequence[str], most: int) -> None:
        self.pinned = tuple(dict.fromkeys(pinned))
        self._table, self._announcements, self._most = table, announcements, max(most, len(self.pinned))
        self._last_request: dict[str, float] = {}  # monotonic seconds, of scenarios that are held
        self._unpublished_until: dict[str, float] = {}  # monotonic seconds
        self._requested: set[str] = set()
        self._lock = threading.Lock()
        for name in self.pinned:
            announcements.follow(name)

    def request(self, name: str) -> bool:
        """Have a scenario loaded if it is not held. Returns False if nothing is known to be published for it.

        The registry is looked up in any case: if a publication was not announced, a later request finds it.
        """
        now = time.monotonic()
        if self._table.slot(name) is not None:
            self._last_request[name] = now
            return True
        with self._lock:
            if self._unpublished_until.get(name, now) > now:
                return False
            if name not in self._requested and len(self._requested) < MOST_REQUESTED:
                self._requested.add(name)
                self._announcements.follow(name)
        return self._announcements.is_published(name)

    def mark_unpublished(self, name: str) -> None:
        """Record that nothing is published for a scenario."""
        with self._lock:
            if len(self._unpublished_until) >= MOST_UNPUBLISHED:
                self._unpublished_until.clear()
            self._unpublished_until[name] = time.monotonic() + UNPUBLISHED_SECONDS
            self._requested.discard(name)
        self._announcements.drop(name)

    def open(self, name: str) -> list[str]:
        """Give a scenario a slot, and return the names of the scenarios that were dropped for it."""
        if self._table.slot(name) is not None:
            return []
        with self._lock:
            self._requested.discard(name)
            self._last_request[name] = time.monotonic()
            self._table.open(name)
        return self._drop_excess()

    def _drop_excess(self) -> list[str]:
        dropped = []
        while len(slots := self._table.slots()) > self._most:
            unpinned = [slot.scenario for slot in slots if slot.scenario not in self.pinned]
            oldest = min(unpinned, key=lambda name: self._last_request.get(name, 0.0))
            with self._lock:
                self._table.close(oldest)
                self._last_request.pop(oldest, None)
            self._announcements.drop(oldest)
            dropped.append(oldest)
        return dropped
