"""Metrics of the updater's intake: events, dead letters, watermarks and the guard against abuse.

The intake keeps the totals, in its checkpoint. The counters here are raised to them, so that the identity
``in = the sum of all other outcomes + pending`` holds on each scrape, also after a resume from a checkpoint.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from streams.dead_letters import Reason
from streams.guard import RULES
from streams.guard_quarantine import KINDS

EVENT_OUTCOMES = (
    "in",
    "learnt",
    "dead_letter",
    "duplicate",
    "expired",
    "ignored",
    "forgotten",
    "quarantined",
    "capped",
    "missed",
)
LATENESS_SECONDS = (10, 60, 600, 3_600, 86_400)


class IntakeMetrics:
    """Events by topic and outcome, and the measures against abuse.

    Args:
        registry: the registry where the series are declared.
        topics: the topics to export at 0 from the start.
    """

    def __init__(self, registry: CollectorRegistry, topics: Sequence[str]) -> None:
        self._totals: dict[tuple[Counter, tuple[str, ...]], int] = defaultdict(int)
        self._events = Counter(
            "headwater_events_total",
            "Events by topic and outcome: in = the sum of all other outcomes + pending.",
            ["topic", "outcome"],
            registry=registry,
        )
        self._events_pending = Gauge(
            "headwater_events_pending", "Events taken in whose outcome is still open.", ["topic"], registry=registry
        )
        self._dead_letters = Counter(
            "headwater_dead_letters_total", "Events refused, by reason.", ["reason"], registry=registry
        )
        for reason in Reason:
            self._dead_letters.labels(reason.value)
        self._declare_clocks(registry)
        for topic in topics:
            self._events_pending.labels(topic)
            self._clamped_times.labels(topic)
            for outcome in EVENT_OUTCOMES:
                self._events.labels(topic, outcome)
        self._declare_guard(registry)

    def _declare_clocks(self, registry: CollectorRegistry) -> None:
        self._event_watermark_timestamp_seconds = Gauge(
            "headwater_event_watermark_timestamp_seconds", "Latest event time taken in.", registry=registry
        )
        self._partition_watermark_timestamp_seconds = Gauge(
            "headwater_partition_watermark_timestamp_seconds",
            "Latest event time taken in, by partition; the earliest of those not idle closes windows.",
            ["topic", "partition"],
            registry=registry,
        )
        self._late_events = Counter(
            "headwater_late_events_total",
            "Events behind the watermark, by the upper bound of their lateness.",
            ["topic", "late_by"],
            registry=registry,
        )
        self._clamped_times = Counter(
            "headwater_clamped_times_total",
            "Records whose event or record time lay ahead of the reader's clock and was replaced by it.",
            ["topic"],
            registry=registry,
        )

    def _declare_guard(self, registry: CollectorRegistry) -> None:
        self._downweighted = Counter(
            "headwater_guard_downweighted_total",
            "Events and lists with a reduced weight or none, by the guard's rule.",
            ["rule"],
            registry=registry,
        )
        for rule in RULES:
            self._downweighted.labels(rule)
        self._quarantined = Counter(
            "headwater_quarantined_total", "Users and items put into quarantine.", ["kind"], registry=registry
        )
        self._in_quarantine = Gauge(
            "headwater_quarantine_keys", "Users and items in quarantine.", ["kind"], registry=registry
        )
        for kind in KINDS:
            self._quarantined.labels(kind)
            self._in_quarantine.labels(kind)

    def show_events(self, by_topic: Mapping[str, Mapping[str, int]]) -> None:
        """Set the events of each topic.

        Args:
            by_topic: for each topic, the total of each of `EVENT_OUTCOMES` and the number `pending`.
        """
        for topic, counts in by_topic.items():
            self._events_pending.labels(topic).set(counts["pending"])
            for outcome in EVENT_OUTCOMES:
                self._raise(self._events, (topic, outcome), counts[outcome])

    def show_dead_letters(self, by_reason: Mapping[str, int]) -> None:
        """Raise the dead letters of each reason to its total."""
        for reason, total in by_reason.items():
            self._raise(self._dead_letters, (reason,), total)

    def show_late_events(self, totals: Mapping[tuple[str, str], int]) -> None:
        """Raise the late events of each topic and lateness, such as `60s` or `more`, to their total."""
        for labels, total in totals.items():
            self._raise(self._late_events, labels, total)

    def show_clamped_times(self, by_topic: Mapping[str, int]) -> None:
        """Raise the clamped times of each topic to their total."""
        for topic, total in by_topic.items():
            self._raise(self._clamped_times, (topic,), total)

    def show_guard(
        self, *, downweighted: Mapping[str, int], quarantines: Mapping[str, int], in_quarantine: Mapping[str, int]
    ) -> None:
        """Set the measures against abuse.

        Args:
            downweighted: the total of events and lists with a reduced weight, by rule.
            quarantines: the total of quarantines, by kind.
            in_quarantine: the number in quarantine now, by kind.
        """
        for rule, total in downweighted.items():
            self._raise(self._downweighted, (rule,), total)
        for kind, total in quarantines.items():
            self._raise(self._quarantined, (kind,), total)
        for kind, keys in in_quarantine.items():
            self._in_quarantine.labels(kind).set(keys)

    def show_watermarks(self, latest_ms: int, partitions: Mapping[tuple[str, int], int]) -> None:
        """Set the watermarks.

        Args:
            latest_ms: the latest event time of all partitions, epoch milliseconds.
            partitions: the latest event time of each partition, epoch milliseconds.
        """
        self._event_watermark_timestamp_seconds.set(latest_ms / 1_000)
        for (topic, partition), event_ms in partitions.items():
            self._partition_watermark_timestamp_seconds.labels(topic, str(partition)).set(event_ms / 1_000)

    def _raise(self, counter: Counter, labels: tuple[str, ...], total: int) -> None:
        counter.labels(*labels).inc(total - self._totals[counter, labels])
        self._totals[counter, labels] = total
