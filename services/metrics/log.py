"""Metrics of the log that the updater consumes: readable topics, lag, and topics that changed underneath it."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.metrics.series import TopicMetrics


class ConsumedLogMetrics:
    """Lag and readability of the consumed topics, and changes of the log itself.

    Args:
        registry: the registry where the series are declared.
        topics: the topics to export as readable from the start.
    """

    def __init__(self, registry: CollectorRegistry, topics: Sequence[str]) -> None:
        self._lag_records = Gauge(
            "headwater_consumer_lag_records",
            "Records in the log that are not learnt yet, including those behind an open transaction.",
            ["topic", "partition"],
            registry=registry,
        )
        self._topics = TopicMetrics(registry, topics)
        self._changes = Counter(
            "headwater_log_changes_total",
            "Topics found recreated, and partitions found shorter than what had been read of them.",
            ["change"],
            registry=registry,
        )
        for change in ("recreated", "truncated"):
            self._changes.labels(change)
        self._records_waiting = Gauge(
            "headwater_records_waiting", "Records read and waiting for their micro-batch to close.", registry=registry
        )

    def show_topics(self, topics: Iterable[str], problems: Iterable[str]) -> None:
        """Set the readability of topics.

        Args:
            topics: all topics that are consumed.
            problems: those that cannot be read, each as `topic` or `topic/partition`.
        """
        self._topics.show(topics, problems)

    def show_lag(self, records: Mapping[tuple[str, int], int]) -> None:
        """Set the lag of each partition, in records."""
        for (topic, partition), lag in records.items():
            self._lag_records.labels(topic, str(partition)).set(lag)

    def partition_dropped(self, topic: str, partition: int) -> None:
        """Remove the lag of a partition that is consumed no longer.

        Args:
            topic: the topic of the partition.
            partition: the number of the partition.
        """
        self._lag_records.remove(topic, str(partition))

    def show_waiting(self, records: int) -> None:
        """Set the number of records that wait for their micro-batch to close."""
        self._records_waiting.set(records)

    def log_changed(self, *, recreated_topics: int, truncated_partitions: int) -> None:
        """Count changes of the log.

        Args:
            recreated_topics: the number of topics found recreated.
            truncated_partitions: the number of partitions found shorter than what had been read of them.
        """
        self._changes.labels("recreated").inc(recreated_topics)
        self._changes.labels("truncated").inc(truncated_partitions)
