"""An interval scheduler for work that repeats."""

import time

from streams.connection import backoff_seconds

LONGEST_PAUSE_SECONDS = 10.0  # after a failure


class Schedule:
    """Interval scheduler with back-off and a cap on its share of the time. The first run is due at once.

    Args:
        gap_seconds: the shortest time from the start of one run to the start of the next.
        share: the largest share of the time that runs may take; a longer run moves the next one further away.

    Attributes:
        is_failing: whether the last run failed.
    """

    def __init__(self, gap_seconds: float, *, share: float = 1.0) -> None:
        self._gap_seconds, self._share = gap_seconds, share
        self._began = self._next = 0.0  # monotonic seconds
        self._pauses = backoff_seconds()
        self.is_failing = False

    def is_due(self) -> bool:
        """Return whether a run is due, and take the current time as its start."""
        self._began = time.monotonic()
        return self._began >= self._next

    def done(self) -> None:
        """Record that the run succeeded."""
        took_seconds = time.monotonic() - self._began
        self._next = self._began + max(self._gap_seconds, took_seconds / self._share)
        self._pauses, self.is_failing = backoff_seconds(), False

    def failed(self) -> None:
        """Record that the run failed; the next one is due after a growing pause of at most `LONGEST_PAUSE_SECONDS`.

        The pause begins now, since a failed run may have taken long, and other work continues between two attempts.
        Neither a long gap nor the share of the time applies: the failed work is overdue.
        """
        pause_seconds = min(max(self._gap_seconds, next(self._pauses)), LONGEST_PAUSE_SECONDS)
        self._next, self.is_failing = time.monotonic() + pause_seconds, True
