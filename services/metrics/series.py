"""Registries, buckets and declarations that several processes share."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, Histogram, PlatformCollector, ProcessCollector

from streams.offsets import topic_of

REQUEST_BUCKETS_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
WORK_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def new_registry() -> CollectorRegistry:
    """Return a registry for one process, with its memory, CPU time, open files and Python version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def work_seconds(name: str, documentation: str, registry: CollectorRegistry) -> Histogram:
    """Declare a histogram of the duration of one step of work, with buckets from 5 ms to 30 s."""
    return Histogram(name, documentation, buckets=WORK_BUCKETS_SECONDS, registry=registry)


def catalogue_items(registry: CollectorRegistry) -> Gauge:
    """Declare the number of items in the catalogue topics."""
    return Gauge("headwater_catalogue_items", "Items in the catalogue topics, as far as read.", registry=registry)


class TopicMetrics:
    """Readability of the Kafka topics that a process consumes.

    Args:
        registry: the registry where the series are declared.
        topics: the topics to export as readable from the start.
    """

    def __init__(self, registry: CollectorRegistry, topics: Iterable[str] = ()) -> None:
        self._readable = Gauge(
            "headwater_topic_readable",
            "1 if a topic can be read; 0 if it is missing or one of its partitions cannot be read.",
            ["topic"],
            registry=registry,
        )
        self.show(topics, ())

    def show(self, topics: Iterable[str], problems: Iterable[str]) -> None:
        """Set the readability of topics.

        Args:
            topics: all topics that are consumed.
            problems: those that cannot be read, each as `topic` or `topic/partition`.
        """
        unreadable = {topic_of(name) for name in problems}
        for topic in topics:
            self._readable.labels(topic).set(topic not in unreadable)
