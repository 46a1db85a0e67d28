"""Metrics of the collector process."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.metrics.access import AccessMetrics
from services.metrics.requests import RequestMetrics
from streams.events import MODELS

UNKNOWN_KIND = "unknown"

Outcome = Literal["accepted", "rejected", "refused_full"]


class CollectorMetrics:
    """Events received over HTTP, spooled on disk and forwarded to Kafka.

    From one start to the next: spooled at the start + accepted = forwarded + spooled now.

    Args:
        registry: the registry where the series are declared.

    Attributes:
        http: HTTP requests by route and status.
        access: requests refused by access control or limits.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = RequestMetrics(registry, statuses=("202", "400", "413", "415", "422", "429", "500", "503"))
        self.access = AccessMetrics(registry)
        self._events = Counter(
            "headwater_collector_events_total",
            "Events received by kind and outcome; refused_full: answered 429 because the spool was full.",
            ["kind", "outcome"],
            registry=registry,
        )
        for kind, outcome in product((*MODELS, UNKNOWN_KIND), get_args(Outcome)):
            self._events.labels(kind, outcome)
        self._forwarded = Counter(
            "headwater_collector_forwarded_total",
            "Events that Kafka has confirmed, by kind; those sent again after a crash count again.",
            ["kind"],
            registry=registry,
        )
        for kind in MODELS:
            self._forwarded.labels(kind)
        self._spool_events = Gauge("headwater_collector_spool_events", "Events in the spool.", registry=registry)
        self._spool_bytes = Gauge("headwater_collector_spool_bytes", "Their keys and values.", registry=registry)
        self._oldest_timestamp_seconds = Gauge(
            "headwater_collector_spool_oldest_timestamp_seconds",
            "Time at which the oldest event in the spool was accepted; the time of the scrape if the spool is empty.",
            registry=registry,
        )

    def events_received(self, kinds: Iterable[str], outcome: Outcome) -> None:
        """Count events of one request.

        Args:
            kinds: the kind of each event.
            outcome: the outcome that they share.
        """
        for kind in kinds:
            self._events.labels(kind, outcome).inc()

    def events_forwarded(self, by_kind: Mapping[str, int]) -> None:
        """Count events that Kafka has confirmed.

        Args:
            by_kind: the number of events of each kind.
        """
        for kind, count in by_kind.items():
            self._forwarded.labels(kind).inc(count)

    def show_spool(self, *, events: int, size_bytes: int, oldest_seconds: float) -> None:
        """Set the state of the spool.

        Args:
            events: the number of events in it.
            size_bytes: the size of their keys and values.
            oldest_seconds: the time at which the oldest was accepted, epoch seconds.
        """
        self._spool_events.set(events)
        self._spool_bytes.set(size_bytes)
        self._oldest_timestamp_seconds.set(oldest_seconds)
