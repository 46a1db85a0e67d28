"""Event-time watermarks: up to when the stream is complete, by partition and over all."""

from collections.abc import Mapping

from streams.offsets import TopicPartition

_UNBOUNDED_MS = 2**63 - 1

IDLE_SECONDS = 60.0


class Watermarks:
    """A partition's watermark is the latest event time seen in it; the stream's is the earliest of its partitions'.

    A partition with nothing to say must not hold the others back: it is idle, and left out, once its newest record is
    `idle_seconds` older than the newest record of all. That is told by the records' own times and not by a clock, so
    that the same log gives the same watermarks again.

    No time counts as later than the reader's clock (`bound`): a producer whose clock is ahead would close the windows
    of all others, and make their partitions look idle.

    Args:
        idle_seconds: after how long, in the log's time, a silent partition is left out.
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
        """Bound all watermarks by the reader's clock: those that there are, and what comes until the next call.

        Args:
            now_ms: what the reader's clock shows, epoch milliseconds.

        Returns:
            Whether one was later, as where the clock was set back or an earlier release had kept it.
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
        """Take in an event.

        Args:
            partition: where it was.
            event_ms: when it happened, epoch milliseconds; no event happens after it is published, so that one which
                says so counts as of its publication.
            log_ms: when it was published.
        """
        log_ms = min(log_ms, self._now_ms)
        event_ms = min(event_ms, log_ms)
        if event_ms > self._event_ms.get(partition, -1):
            self._event_ms[partition] = event_ms
        if log_ms > self._log_ms.get(partition, -1):
            self._log_ms[partition] = log_ms

    def advance(self) -> int:
        """Compute the stream's watermark anew; only `bound` takes it back. Epoch milliseconds, 0 without events."""
        if self._log_ms:
            awake_ms = max(self._log_ms.values()) - self._idle_ms
            slowest = min(at for partition, at in self._event_ms.items() if self._log_ms[partition] >= awake_ms)
            self.stream_ms = max(self.stream_ms, slowest)
        return self.stream_ms

    @property
    def latest_ms(self) -> int:
        """The latest event time of all partitions."""
        return max(self._event_ms.values(), default=0)

    @property
    def partitions(self) -> Mapping[TopicPartition, int]:
        """Each partition's own watermark."""
        return self._event_ms

    def state(self) -> dict[str, object]:
        """All of it, as JSON can hold it."""
        partitions = [[*at, event_ms, self._log_ms[at]] for at, event_ms in self._event_ms.items()]
        return {"stream_ms": self.stream_ms, "partitions": partitions}

    def restore(self, state: Mapping[str, object]) -> None:
        """Put back what `state` gave."""
        rows: list[tuple[str, int, int, int]] = state["partitions"]  # type: ignore[assignment]
        self._event_ms = {(topic, number): event_ms for topic, number, event_ms, _ in rows}
        self._log_ms = {(topic, number): log_ms for topic, number, _, log_ms in rows}
        self.stream_ms = int(state["stream_ms"])  # type: ignore[call-overload]
