"""Metrics of the log that the updater reads: lag, topics that cannot be read, and logs that have changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from services.metrics.updater import UpdaterMetrics
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.offsets import TopicPartition, topic_of

_LAG_SECONDS = 2.0  # how often the lag is asked for
_LAG_TIMEOUT_SECONDS = 1.0  # a metric does not hold the loop up


class LogMetrics:
    """Exports what is known of a consumer's topics.

    Args:
        consumer: Reads them.
        metrics: Where to export to.
        topics: Their names.
    """

    def __init__(self, consumer: PartitionConsumer, metrics: UpdaterMetrics, topics: Sequence[str]) -> None:
        self._consumer, self._metrics, self._topics = consumer, metrics, topics
        self._gaps_seen = 0
        self._lagging: set[TopicPartition] = set()  # partitions with a series
        self._next_lag = 0.0  # monotonic seconds

    def export(self, waiting: Mapping[TopicPartition, int]) -> None:
        """Set the metrics to how things stand.

        Args:
            waiting: records that were read and not learnt yet, by partition.
        """
        unreadable = {topic_of(name) for name in self._consumer.problems()}
        for topic in self._topics:
            self._metrics.topic_readable.labels(topic).set(topic not in unreadable)
        self._count_changes()
        if time.monotonic() >= self._next_lag:
            self._next_lag = time.monotonic() + _LAG_SECONDS
            self._export_lag(waiting)

    def _count_changes(self) -> None:
        gaps = self._consumer.gaps[self._gaps_seen :]
        self._gaps_seen += len(gaps)
        recreated = {gap.topic for gap in gaps if gap.cause == "recreated"}
        self._metrics.log_changes.labels("recreated").inc(len(recreated))
        self._metrics.log_changes.labels("truncated").inc(sum(gap.cause == "truncation" for gap in gaps))

    def _export_lag(self, waiting: Mapping[TopicPartition, int]) -> None:
        gone = self._lagging - self._consumer.positions().keys()
        for topic, partition in gone:
            self._metrics.consumer_lag_records.remove(topic, str(partition))
        self._lagging -= gone
        try:
            lag = self._consumer.lag(_LAG_TIMEOUT_SECONDS)
        except HeadwaterStreamError:
            return  # the consumer itself reports what is wrong
        self._lagging |= lag.keys()
        for at, records in lag.items():
            topic, partition = at
            self._metrics.consumer_lag_records.labels(topic, str(partition)).set(records + waiting.get(at, 0))
