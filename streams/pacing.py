"""How long a reader waits between two looks at the log."""

import time

FEW_RECORDS = 100  # after a look that brought so many, or all it might, there is no pause: the log is long
LONGEST_PAUSE_SECONDS = 0.1  # how much later than the broker could a record is noticed after a quiet second


class Pacing:
    """Spaces looks: each costs a millisecond or more, whatever it brings.

    Args:
        idle_pause_seconds: Pause after a look that brought few records or none. Where nothing has come for long, a
            tenth of that time, to a tenth of a second at most. 0 leaves the waiting to the broker.
    """

    def __init__(self, idle_pause_seconds: float) -> None:
        self._idle_pause_seconds = idle_pause_seconds
        self._next_look, self._last_came = 0.0, time.monotonic()  # monotonic seconds

    def wait_for_turn(self, deadline: float) -> bool:
        """Wait until the next look; False where that comes after a deadline, monotonic seconds."""
        time.sleep(max(0.0, min(self._next_look, deadline) - time.monotonic()))
        return self._next_look <= deadline

    def looked(self, records: int, max_records: int) -> None:
        """Set the next look.

        Args:
            records: How many records this one brought.
            max_records: How many it might have brought.
        """
        now = time.monotonic()
        if records:
            self._last_came = now
        many = records >= min(FEW_RECORDS, max_records)
        self._next_look = now if many or not self._idle_pause_seconds else now + self._pause_seconds(now)

    def rest(self) -> None:
        """Set the next look after one at no partition at all."""
        self._next_look = time.monotonic() + LONGEST_PAUSE_SECONDS

    def _pause_seconds(self, now: float) -> float:
        return max(self._idle_pause_seconds, min(LONGEST_PAUSE_SECONDS, (now - self._last_came) / 10))
