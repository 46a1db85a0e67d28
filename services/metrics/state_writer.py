"""Metrics of the process that writes shoppers' states to a store."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.metrics.series import TopicMetrics, work_seconds


class StateWriterMetrics:
    """Events written to the store of shoppers' states.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "headwater_state_events_total",
            "Events by outcome: written, by kind, or left out because their shopper is to be forgotten.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("click", "purchase", "forgotten"):
            self._events.labels(outcome)
        self._missed_records = Counter(
            "headwater_state_missed_records_total",
            "Records that retention deleted before this writer read them.",
            ["topic"],
            registry=registry,
        )
        self._failures = Counter(
            "headwater_state_write_failures_total", "Times that writing ended in an error.", registry=registry
        )
        self._writing = Gauge(
            "headwater_state_writing", "1 while this writer writes, 0 while it is on standby.", registry=registry
        )
        self._write_seconds = work_seconds("headwater_state_write_seconds", "Time of one transaction.", registry)
        self._watermark_timestamp_seconds = Gauge(
            "headwater_state_watermark_timestamp_seconds", "Event time of the newest event written.", registry=registry
        )
        self._topics = TopicMetrics(registry)

    def show_writing(self, *, writing: bool) -> None:
        """Set whether this writer holds the lease and writes."""
        self._writing.set(writing)

    def show_topics(self, topics: Iterable[str], problems: Iterable[str]) -> None:
        """Set the readability of topics.

        Args:
            topics: all topics that are consumed.
            problems: those that cannot be read, each as `topic` or `topic/partition`.
        """
        topics = tuple(topics)
        self._topics.show(topics, problems)
        for topic in topics:
            self._missed_records.labels(topic)  # there at 0, so that the first missed record is an increase

    def records_missed(self, topic: str, records: int) -> None:
        """Count records that retention deleted before they were read.

        Args:
            topic: the topic of the records.
            records: the number of records.
        """
        self._missed_records.labels(topic).inc(records)

    def transaction_took(self, seconds: float) -> None:
        """Observe the time of one transaction."""
        self._write_seconds.observe(seconds)

    def events_written(self, by_outcome: Mapping[str, int], *, newest_ms: int) -> None:
        """Count the events of one transaction.

        Args:
            by_outcome: the number of events of each outcome.
            newest_ms: the event time of the newest one, epoch milliseconds; 0 if there was none.
        """
        for outcome, count in by_outcome.items():
            self._events.labels(outcome).inc(count)
        if newest_ms:
            self._watermark_timestamp_seconds.set(newest_ms / 1000)

    def write_failed(self) -> None:
        """Count an error that ended writing until the next attempt."""
        self._failures.inc()
