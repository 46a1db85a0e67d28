"""When something that is done again and again is due next."""

import time

from streams.connection import backoff_seconds

LONGEST_PAUSE_SECONDS = 10.0  # after a failure


class Schedule:
    """Due at once, then some time after it was done; after a failed try when a growing, bounded pause is over.

    Args:
        gap_seconds: Shortest time from one beginning to the next.
        share: Of the time at most that it may take: what it takes spaces it, too.

    Attributes:
        is_failing: Whether the last try failed.
    """

    def __init__(self, gap_seconds: float, *, share: float = 1.0) -> None:
        self._gap_seconds, self._share = gap_seconds, share
        self._began = self._next = 0.0  # monotonic seconds
        self._pauses = backoff_seconds()
        self.is_failing = False

    def is_due(self) -> bool:
        """Whether it is to be done now; a try begins with it."""
        self._began = time.monotonic()
        return self._began >= self._next

    def done(self) -> None:
        """It succeeded."""
        took_seconds = time.monotonic() - self._began
        self._next = self._began + max(self._gap_seconds, took_seconds / self._share)
        self._pauses, self.is_failing = backoff_seconds(), False

    def failed(self) -> None:
        """Record a failure: the next try is due after a growing pause of at most `LONGEST_PAUSE_SECONDS`.

        The pause begins now, since a failed try may have taken long, and other work goes on between two tries. Neither
        a long gap nor the share of the time applies: what failed is overdue.
        """
        pause_seconds = min(max(self._gap_seconds, next(self._pauses)), LONGEST_PAUSE_SECONDS)
        self._next, self.is_failing = time.monotonic() + pause_seconds, True
