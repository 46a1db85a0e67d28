"""Export of the state of the consumed log: lag, unreadable topics and changed logs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from services.metrics.log import ConsumedLogMetrics
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.offsets import TopicPartition

_LAG_SECONDS = 2.0  # interval between requests for the lag
_LAG_TIMEOUT_SECONDS = 1.0  # a metric does not hold the loop up


class LogMetrics:
    """Exporter of the state of a consumer's topics.

    Args:
        consumer: the consumer of the topics.
        metrics: the metrics to set.
        topics: the names of the topics.
    """

    def __init__(self, consumer: PartitionConsumer, metrics: ConsumedLogMetrics, topics: Sequence[str]) -> None:
        self._consumer, self._metrics, self._topics = consumer, metrics, topics
        self._gaps_seen = 0
        self._with_lag: set[TopicPartition] = set()  # partitions with a series
        self._next_lag = 0.0  # monotonic seconds

    def export(self, waiting: Mapping[TopicPartition, int]) -> None:
        """Set the metrics to the present state.

        Args:
            waiting: the number of records read and not learnt yet, by partition.
        """
        self._metrics.show_topics(self._topics, self._consumer.problems())
        self._count_changes()
        if time.monotonic() >= self._next_lag:
            self._next_lag = time.monotonic() + _LAG_SECONDS
            self._export_lag(waiting)

    def _count_changes(self) -> None:
        gaps = self._consumer.gaps[self._gaps_seen :]
        self._gaps_seen += len(gaps)
        self._metrics.log_changed(
            recreated_topics=len({gap.topic for gap in gaps if gap.cause == "recreated"}),
            truncated_partitions=sum(gap.cause == "truncation" for gap in gaps),
        )

    def _export_lag(self, waiting: Mapping[TopicPartition, int]) -> None:
        gone = self._with_lag - self._consumer.positions().keys()
        for topic, partition in gone:
            self._metrics.partition_dropped(topic, partition)
        self._with_lag -= gone
        try:
            lag = self._consumer.lag(_LAG_TIMEOUT_SECONDS)
        except HeadwaterStreamError:
            return  # the consumer itself reports what is wrong
        self._with_lag |= lag.keys()
        self._metrics.show_lag({at: records + waiting.get(at, 0) for at, records in lag.items()})
