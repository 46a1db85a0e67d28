"""Pauses between the polls of a reader."""

import time

FEW_RECORDS = 100  # a poll that brings as many, or its maximum, is followed by no pause: there is more to read
LONGEST_PAUSE_SECONDS = 0.1  # the delay with which a record is noticed after a second of silence


class Pacing:
    """A schedule of polls; each poll costs a millisecond or more, whatever it brings.

    Args:
        idle_pause_seconds: the pause after a poll that brought few records or none. After a long silence the pause is a
            tenth of the silence, at most a tenth of a second. 0 leaves the waiting to the broker.
    """

    def __init__(self, idle_pause_seconds: float) -> None:
        self._idle_pause_seconds = idle_pause_seconds
        self._next_poll, self._last_records = 0.0, time.monotonic()  # monotonic seconds

    def wait_for_turn(self, deadline: float) -> bool:
        """Wait until the next poll is due. Returns False if that is after the deadline.

        Args:
            deadline: the latest time to return, monotonic seconds.
        """
        time.sleep(max(0.0, min(self._next_poll, deadline) - time.monotonic()))
        return self._next_poll <= deadline

    def record_poll(self, records: int, max_records: int) -> None:
        """Schedule the poll after one that has ended.

        Args:
            records: the number of records that it brought.
            max_records: the largest number that it could have brought.
        """
        now = time.monotonic()
        if records:
            self._last_records = now
        many = records >= min(FEW_RECORDS, max_records)
        self._next_poll = now if many or not self._idle_pause_seconds else now + self._pause_seconds(now)

    def record_idle(self) -> None:
        """Schedule the poll after one that had no partition to read."""
        self._next_poll = time.monotonic() + LONGEST_PAUSE_SECONDS

    def _pause_seconds(self, now: float) -> float:
        return max(self._idle_pause_seconds, min(LONGEST_PAUSE_SECONDS, (now - self._last_records) / 10))
