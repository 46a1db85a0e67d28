"""The scenarios that a worker holds: some pinned, the others loaded when asked for and let go when others are."""

import threading
import time
from collections.abc import Callable, Sequence

from services.scorer.announcements import Announcements
from services.scorer.model_slot import ModelSlot

NOTHING_SECONDS = 10.0  # for so long a scenario without a publication is not asked for again
MOST_UNKNOWN = 1_000  # names remembered
MOST_WAITING = 16  # names asked for and not yet looked at


class Scenarios:
    """One slot a scenario; requests ask from any thread, the worker's opens and lets go.

    Args:
        announcements: Follows what is held.
        pinned: Never let go; the first is the one of requests that name none.
        most: Held at a time, with the pinned ones.
        slot: Makes one.
    """

    def __init__(
        self, announcements: Announcements, *, pinned: Sequence[str], most: int, slot: Callable[[str], ModelSlot]
    ) -> None:
        self.pinned = tuple(dict.fromkeys(pinned))
        self._announcements, self._most, self._slot = announcements, max(most, len(self.pinned)), slot
        self._slots: dict[str, ModelSlot] = {}
        self._asked: dict[str, float] = {}  # monotonic seconds, of those that have a slot
        self._nothing: dict[str, float] = {}  # until when, monotonic seconds
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        for name in self.pinned:
            announcements.follow(name)

    def get(self, name: str) -> ModelSlot | None:
        """The slot of a scenario, if it is held."""
        return self._slots.get(name)

    def slot(self, name: str) -> ModelSlot:
        """The slot of a scenario that is held."""
        return self._slots[name]

    def slots(self) -> list[ModelSlot]:
        """All of them."""
        return list(self._slots.values())

    def ask(self, name: str) -> bool:
        """Note that a scenario is wanted, and have it loaded; False when nothing is known to be published of it.

        The registry is asked in any case: where a publication was not announced, a later request finds it.
        """
        now = time.monotonic()
        if name in self._slots:
            self._asked[name] = now
            return True
        with self._lock:
            if self._nothing.get(name, now) > now:
                return False
            if name not in self._waiting and len(self._waiting) < MOST_WAITING:
                self._waiting.add(name)
                self._announcements.follow(name)
        return self._announcements.is_published(name)

    def nothing(self, name: str) -> None:
        """Note that nothing is published under a name."""
        with self._lock:
            if len(self._nothing) >= MOST_UNKNOWN:
                self._nothing.clear()
            self._nothing[name] = time.monotonic() + NOTHING_SECONDS
            self._waiting.discard(name)
        self._announcements.drop(name)

    def open(self, name: str) -> list[str]:
        """Give a scenario its slot; the names of those that went for it."""
        if name in self._slots:
            return []
        with self._lock:
            self._waiting.discard(name)
            self._asked[name] = time.monotonic()
            self._slots[name] = self._slot(name)
        return self._let_go()

    def _let_go(self) -> list[str]:
        gone = []
        while len(self._slots) > self._most:
            free = [name for name in self._slots if name not in self.pinned]
            oldest = min(free, key=lambda name: self._asked.get(name, 0.0))
            with self._lock:
                del self._slots[oldest]
                self._asked.pop(oldest, None)
            self._announcements.drop(oldest)
            gone.append(oldest)
        return gone
