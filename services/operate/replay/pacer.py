"""Holds a replay to its pace: so many events a second, or the data's own time sped up."""

import time
from collections.abc import Callable

# A stall longer than this is not made up for by a burst: the schedule moves instead.
MAX_CATCH_UP_SECONDS = 1.0


class Pacer:
    """Waits until the next event is due. With neither a rate nor a speed-up, everything is due at once.

    Due times are counted from the first event and not from the one before, so that small delays do not add up.

    Args:
        rate: Events per second.
        speed_up: Seconds of event time per second.
        sleep: Waits that many seconds, or less.
        clock: Tells the seconds passed.

    Raises:
        ValueError: Both are given, or one is not above 0.
    """

    def __init__(
        self,
        *,
        rate: float | None = None,
        speed_up: float | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate is not None and speed_up is not None:
            raise ValueError(f"`rate` and `speed_up` exclude each other, got {rate} and {speed_up}; give one")
        for name, value in (("rate", rate), ("speed_up", speed_up)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}; leave it out to send without waiting")
        self._rate = rate
        self._speed_up = speed_up
        self._sleep = sleep
        self._clock = clock
        self._count = 0
        self._first_ts_ms = 0
        self._began = 0.0

    def wait(self, ts_ms: int) -> None:
        """Returns when the event is due.

        Args:
            ts_ms: The event's time, epoch milliseconds.
        """
        if self._count == 0:
            self._began, self._first_ts_ms = self._clock(), ts_ms
        ahead_seconds = self._began + self._due_seconds(ts_ms) - self._clock()
        self._count += 1
        if ahead_seconds > 0:
            self._sleep(ahead_seconds)
        elif ahead_seconds < -MAX_CATCH_UP_SECONDS:
            self._began -= ahead_seconds

    def _due_seconds(self, ts_ms: int) -> float:
        """Tells how long after the first event this one is due."""
        if self._rate is not None:
            return self._count / self._rate
        if self._speed_up is not None:
            return (ts_ms - self._first_ts_ms) / 1000 / self._speed_up
        return 0.0
