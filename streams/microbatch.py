"""Micro-batches: closed by count, by age or by bytes, whichever comes first."""

from collections import deque

from streams.joiner import Example


class MicroBatcher:
    """Gathers examples and hands them out in batches that keep to the limits.

    What is beyond a limit stays for the next batch, so `take` never gives more than `max_events` examples, nor more
    than `max_bytes` (but always at least one example). The clock is passed in: seconds of a monotonic clock.

    Args:
        max_events: Close a batch at this many examples.
        max_age_seconds: Close a batch when its first example has waited this long.
        max_bytes: Close a batch when it weighs this much.

    Raises:
        ValueError: If a limit is out of its range.
    """

    def __init__(self, *, max_events: int = 256, max_age_seconds: float = 1.0, max_bytes: int = 1 << 20) -> None:
        for name, value, least in (("max_events", max_events, 1), ("max_bytes", max_bytes, 1)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}; leave it out for the default")
        if not max_age_seconds >= 0:
            raise ValueError(f"`max_age_seconds` must be at least 0, got {max_age_seconds}; 0 closes at once")
        self._max_events = max_events
        self._max_age_seconds = max_age_seconds
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Example, int, float]] = deque()  # example, bytes, time of arrival
        self._bytes = 0
        self._closed = False

    def __len__(self) -> int:
        """How many examples wait."""
        return len(self._waiting)

    def add(self, example: Example, *, size_bytes: int, now: float) -> None:
        """Adds one example.

        Args:
            example: What to learn from.
            size_bytes: What it weighs, for example the length of its record.
            now: Seconds of a monotonic clock.
        """
        self._waiting.append((example, size_bytes, now))
        self._bytes += size_bytes

    def ready(self, now: float) -> bool:
        """Whether a batch is to be taken: one of the limits is reached."""
        if not self._waiting:
            return False
        return (
            self._closed
            or len(self._waiting) >= self._max_events
            or self._bytes >= self._max_bytes
            or now - self._waiting[0][2] >= self._max_age_seconds
        )

    def close(self) -> None:
        """Makes what waits ready, whatever the limits say: no more is to come."""
        self._closed = True

    def take(self) -> list[Example]:
        """Takes the next batch, oldest first; empty when nothing waits."""
        batch: list[Example] = []
        batch_bytes = 0
        while self._waiting and len(batch) < self._max_events:
            example, size_bytes, _ = self._waiting[0]
            if batch and batch_bytes + size_bytes > self._max_bytes:
                break
            self._waiting.popleft()
            batch.append(example)
            batch_bytes += size_bytes
        self._bytes -= batch_bytes
        return batch
