"""Accounting of the intake: the number of events by topic and outcome.

For each topic, in = the sum of all outcomes + pending. The totals are kept in the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.metrics.intake import EVENT_OUTCOMES, LATENESS_SECONDS, IntakeMetrics
from streams.dead_letters import DeadLetter
from streams.guard import Guard
from streams.joiner import Joiner
from streams.offsets import Offsets
from streams.watermarks import Watermarks


class IntakeAccounts:
    """Totals of the intake since the first start.

    Args:
        topics: the consumed topics.
        joiner: the joiner, which counts the events offered to it.
        guard: the guard against abuse, which counts its measures.
        watermarks: the watermarks of the partitions.
    """

    def __init__(self, topics: Sequence[str], joiner: Joiner, guard: Guard, watermarks: Watermarks) -> None:
        self._topics, self._joiner, self._guard, self._watermarks = topics, joiner, guard, watermarks
        self._outcomes: Counter[tuple[str, str]] = Counter()  # (topic, outcome); the joiner's own are not among them
        self._reasons: Counter[tuple[str, str]] = Counter()  # (topic, reason) of dead letters
        self._late: Counter[tuple[str, str]] = Counter()  # (topic, upper bound of the lateness)
        self._clamped: Counter[str] = Counter()  # by topic

    def count(self, topic: str, outcome: str, events: int = 1) -> None:
        """Count events that came in and their outcome.

        Args:
            topic: the topic of the events.
            outcome: one of `EVENT_OUTCOMES`.
            events: the number of events.
        """
        self._outcomes[topic, "in"] += events
        self._outcomes[topic, outcome] += events

    def count_instead_of_learnt(self, topic: str, outcome: str, events: int = 1) -> None:
        """Count events under another outcome that the joiner has counted as learnt.

        Args:
            topic: the topic of the events.
            outcome: `quarantined`, `capped` or `forgotten`.
            events: the number of events.
        """
        self._outcomes[topic, outcome] += events

    def count_missed(self, missed: Offsets) -> None:
        """Count records that were deleted before they were read, by partition."""
        for (topic, _), records in missed.items():
            self.count(topic, "missed", records)

    def count_dead_letter(self, letter: DeadLetter) -> None:
        """Count a dead letter: a whole record, or one line of a record whose other lines were accepted."""
        self.count(letter.topic, "dead_letter")
        self._reasons[letter.topic, letter.reason.value] += 1

    def count_late(self, topic: str, late_ms: int) -> None:
        """Count an event behind the watermark.

        Args:
            topic: the topic of the event.
            late_ms: the distance to the watermark, milliseconds.
        """
        self._late[topic, _lateness(late_ms)] += 1

    def count_clamped(self, topic: str, times: int) -> None:
        """Count times ahead of the reader's clock that were replaced by it.

        Args:
            topic: the topic of the record.
            times: the number of replaced times.
        """
        self._clamped[topic] += times

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the number of events of each outcome, and those `pending`, by topic.

        An item is learnt on arrival, a list with its micro-batch.
        """
        totals = {}
        for topic in self._topics:
            counted = {outcome: self._outcomes[topic, outcome] for outcome in EVENT_OUTCOMES}
            joined = self._joiner.counts(topic)
            joined["learnt"] -= counted["quarantined"] + counted["capped"] + counted["forgotten"]
            totals[topic] = {name: counted.get(name, 0) + joined.get(name, 0) for name in (*EVENT_OUTCOMES, "pending")}
        return totals

    def export(self, metrics: IntakeMetrics) -> None:
        """Raise the metrics to the totals."""
        by_reason: Counter[str] = Counter()
        for (_, reason), letters in self._reasons.items():
            by_reason[reason] += letters
        metrics.show_events(self.totals())
        metrics.show_dead_letters(by_reason)
        metrics.show_late_events(self._late)
        metrics.show_clamped_times(self._clamped)
        metrics.show_guard(
            downweighted=self._guard.downweighted,
            quarantines=self._guard.quarantines,
            in_quarantine=self._guard.in_quarantine,
        )
        metrics.show_watermarks(self._watermarks.latest_ms, self._watermarks.partitions)

    def state(self) -> dict[str, Any]:
        """Return the totals as JSON values, for a checkpoint."""
        return {
            "outcomes": _rows(self._outcomes),
            "reasons": _rows(self._reasons),
            "late": _rows(self._late),
            "clamped": dict(self._clamped),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the totals from a checkpoint."""
        self._outcomes, self._reasons, self._late = (_counter(state[name]) for name in ("outcomes", "reasons", "late"))
        self._clamped = Counter(state.get("clamped", {}))  # missing in checkpoints of earlier releases


def _lateness(late_ms: int) -> str:
    """Return the smallest bound that the lateness does not exceed, such as `60s`; `more` beyond the last."""
    return next((f"{bound}s" for bound in LATENESS_SECONDS if late_ms <= 1_000 * bound), "more")


def _rows(counter: Counter[tuple[str, str]]) -> list[list[Any]]:
    return [[*key, count] for key, count in counter.items()]


def _counter(rows: list[list[Any]]) -> Counter[tuple[str, str]]:
    return Counter({(first, second): count for first, second, count in rows})
