"""Pace of a replay: a number of events per second, or the data's own time sped up."""

import time
from collections.abc import Callable

# After a longer stall the schedule moves, instead of a burst that makes up for it.
MAX_CATCH_UP_SECONDS = 1.0


class Pacer:
    """Pacer that waits until the next event is due. With neither a rate nor a speed-up, all are due at once.

    Due times are counted from the first event and not from the one before, so that small delays do not add up.

    Args:
        rate: events per second; None sets no rate.
        speed_up: seconds of event time per second; None ignores event times.
        sleep: waits for a number of seconds, or less.
        clock: returns monotonic seconds.

    Raises:
        ValueError: both are given, or one is not above 0.
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
        """Wait until the event is due.

        Args:
            ts_ms: the event's time, epoch milliseconds.
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
        """Return the seconds after the first event when this one is due."""
        if self._rate is not None:
            return self._count / self._rate
        if self._speed_up is not None:
            return (ts_ms - self._first_ts_ms) / 1000 / self._speed_up
        return 0.0
