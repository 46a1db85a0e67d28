"""Event-time watermarks: the time up to which the stream is complete, by partition and overall."""

from collections.abc import Mapping

from streams.offsets import TopicPartition

_UNBOUNDED_MS = 2**63 - 1

IDLE_SECONDS = 60.0


class Watermarks:
    """The watermarks of partitions (their latest event times) and of the stream (the earliest watermark of all).

    A silent partition must not hold the others back: it is idle, and left out, once its newest record is `idle_seconds`
    older than the newest record of all. This is decided by the times of the records, not by a clock, so that the same
    log always yields the same watermarks.

    Nor must a partition whose shoppers' clocks are behind: it is left out once its newest event is `idle_seconds` older
    than the newest event of a timely partition, one whose newest event is at most `idle_seconds` older than its newest
    record. While none is timely, as in a replay of old events, all hold the stream back.

    No time counts as later than the reader's clock (`bound`): a producer whose clock is ahead would close the windows
    of all others and make their partitions look idle.

    Args:
        idle_seconds: the time after which a partition is left out that is silent or has only older events.
    """

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        if not idle_seconds > 0:
            raise ValueError(f"`idle_seconds` must be above 0, got {idle_seconds}; leave it out for the default")
        self._idle_ms = int(idle_seconds * 1000)
        self._event_ms: dict[TopicPartition, int] = {}
        self._log_ms: dict[TopicPartition, int] = {}
        self._now_ms = _UNBOUNDED_MS
        self.stream_ms = 0

    def bound(self, now_ms: int) -> bool:
        """Bound all watermarks by the reader's clock: the present ones, and times until the next call.

        Args:
            now_ms: the time of the reader's clock, epoch milliseconds.

        Returns:
            Whether a watermark was later, as after the clock was set back.
        """
        self._now_ms = now_ms
        newest_ms = max(self.stream_ms, *self._event_ms.values(), *self._log_ms.values(), 0)
        if newest_ms <= now_ms:
            return False
        self.stream_ms = min(self.stream_ms, now_ms)
        self._event_ms = {at: min(time_ms, now_ms) for at, time_ms in self._event_ms.items()}
        self._log_ms = {at: min(time_ms, now_ms) for at, time_ms in self._log_ms.items()}
        return True

    def observe(self, partition: TopicPartition, *, event_ms: int, log_ms: int) -> None:
        """Update the watermark of a partition with an event.

        Args:
            partition: the partition of the event.
            event_ms: the event time, epoch milliseconds; a time after the publication counts as the publication.
            log_ms: the publication time, epoch milliseconds.
        """
        log_ms = min(log_ms, self._now_ms)
        event_ms = min(event_ms, log_ms)
        if event_ms > self._event_ms.get(partition, -1):
            self._event_ms[partition] = event_ms
        if log_ms > self._log_ms.get(partition, -1):
            self._log_ms[partition] = log_ms

    def advance(self) -> int:
        """Advance and return the stream's watermark (epoch ms, 0 without events); only `bound` moves it back."""
        if self._log_ms:
            self.stream_ms = max(self.stream_ms, self._slowest_ms())
        return self.stream_ms

    def _slowest_ms(self) -> int:
        """Return the earliest watermark of the partitions that are neither idle nor behind the timely ones."""
        active_since_ms = max(self._log_ms.values()) - self._idle_ms
        active = [(self._event_ms[at], log_ms) for at, log_ms in self._log_ms.items() if log_ms >= active_since_ms]
        timely = [event_ms for event_ms, log_ms in active if event_ms >= log_ms - self._idle_ms]
        oldest_ms = max(timely) - self._idle_ms if timely else 0
        return min(event_ms for event_ms, _ in active if event_ms >= oldest_ms)

    @property
    def latest_ms(self) -> int:
        """The latest event time of all partitions, epoch milliseconds."""
        return max(self._event_ms.values(), default=0)

    @property
    def partitions(self) -> Mapping[TopicPartition, int]:
        """The watermark of each partition, epoch milliseconds."""
        return self._event_ms

    def state(self) -> dict[str, object]:
        """Return the state in a form that JSON can hold."""
        partitions = [[*at, event_ms, self._log_ms[at]] for at, event_ms in self._event_ms.items()]
        return {"stream_ms": self.stream_ms, "partitions": partitions}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore what `state` returned."""
        rows: list[tuple[str, int, int, int]] = state["partitions"]  # type: ignore[assignment]
        self._event_ms = {(topic, number): event_ms for topic, number, event_ms, _ in rows}
        self._log_ms = {(topic, number): log_ms for topic, number, _, log_ms in rows}
        self.stream_ms = int(state["stream_ms"])  # type: ignore[call-overload]
