"""Freshness: the time from an event's publication to the first answer that has learnt it."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peft_adapters.errors import VersionNotFoundError
from streams.delivery import Delivery
from streams.offsets import partition_name


@dataclass(slots=True)
class _Partition:
    """Events of a partition that no answer covers yet, oldest first, and the offset up to which answers cover."""

    waiting: deque[tuple[int, float]] = field(default_factory=deque)  # (offset, published, epoch seconds)
    next_offset: int = 0  # of the newest adapter that answered
    covered_at: float = 0.0  # epoch seconds

    def pop_covered(self) -> list[float]:
        """Remove the events that are covered, and return how long each took, in seconds."""
        durations = []
        while self.waiting and self.waiting[0][0] < self.next_offset:
            durations.append(max(0.0, self.covered_at - self.waiting.popleft()[1]))
        return durations


class Freshness:
    """Measures the freshness of every event, from confirmations of the producer and answers of the scorers.

    Args:
        offsets_of: returns the offsets that an adapter version has learnt, next offset by ``"topic/partition"``; may
            raise `VersionNotFoundError`.
    """

    def __init__(self, offsets_of: Callable[[int], Mapping[str, int]]) -> None:
        self._offsets_of = offsets_of
        self._lock = threading.Lock()
        self._partitions: dict[str, _Partition] = {}
        self._seconds: list[float] = []
        self._newest = 0

    def delivered(self, delivery: Delivery) -> None:
        """Record a confirmed event; an event that was not confirmed is not measured."""
        if delivery.partition is None or delivery.offset is None or delivery.timestamp_ms is None:
            return
        with self._lock:
            partition = self._partitions.setdefault(partition_name(delivery.topic, delivery.partition), _Partition())
            partition.waiting.append((delivery.offset, delivery.timestamp_ms / 1000))
            self._seconds += partition.pop_covered()  # an answer may arrive before the confirmation

    def answered(self, version: int, at_seconds: float) -> None:
        """Record an answer.

        Args:
            version: version of the adapter that answered.
            at_seconds: time of the answer, epoch seconds.
        """
        with self._lock:
            if version <= self._newest:
                return
            try:
                offsets = self._offsets_of(version)
            except VersionNotFoundError:  # pruned meanwhile; the next version covers the same events
                return
            self._newest = version
            for name, offset in offsets.items():
                partition = self._partitions.setdefault(name, _Partition())
                if offset > partition.next_offset:
                    partition.next_offset, partition.covered_at = offset, at_seconds
                    self._seconds += partition.pop_covered()

    def seconds(self, newest: int | None = None) -> list[float]:
        """Return the freshness of events in the order they were covered, for the newest events or for all."""
        with self._lock:
            return self._seconds[-newest:] if newest else list(self._seconds)

    @property
    def waiting(self) -> int:
        """Return the number of events that no answer covers yet."""
        with self._lock:
            return sum(len(partition.waiting) for partition in self._partitions.values())


def percentile(values: list[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed; None without values.

    >>> percentile([3.0, 1.0, 2.0], 50)
    2.0
    """
    if not values:
        return None
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100).__int__() - 1)]
