"""Metrics of a scoring worker."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.metrics.access import AccessMetrics
from services.metrics.adapter import AdapterMetrics
from services.metrics.canaries import CanaryMetrics
from services.metrics.requests import RequestMetrics
from services.metrics.rollouts import RolloutMetrics
from services.metrics.series import TopicMetrics, catalogue_items, work_seconds
from services.metrics.shopper_state import ShopperStateMetrics
from streams.offsets import topic_of

DEPENDENCIES = ("kafka", "registry", "adapter", "state", "catalogue")


class ScorerMetrics:
    """Requests, adapter swaps, catalogue and dependencies of a scoring worker.

    Args:
        registry: the registry where the series are declared.

    Attributes:
        http: HTTP requests by route and status.
        access: requests refused by access control or limits.
        adapter: version and freshness of the adapter that is served.
        rollouts: versions and answer times by arm.
        canaries: click-through in canary trials.
        state: reads from the store of shoppers' states.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = RequestMetrics(registry)
        self.access = AccessMetrics(registry)
        self.adapter = AdapterMetrics(registry)
        self.rollouts = RolloutMetrics(registry)
        self.canaries = CanaryMetrics(registry)
        self.state = ShopperStateMetrics(registry)
        self._swaps = Counter("headwater_swaps_total", "Announced adapters by outcome.", ["outcome"], registry=registry)
        for outcome in ("swapped", "refused"):
            self._swaps.labels(outcome)
        self._swap_seconds = work_seconds("headwater_swap_seconds", "Time from announcement to swap.", registry)
        self._items = Gauge("headwater_items", "Items that can be ranked.", registry=registry)
        self._catalogue_items = catalogue_items(registry)
        self._unused_vectors = Gauge(
            "headwater_unused_vectors",
            "Item vectors ignored because the adapter expects another length; those items are served by their texts.",
            registry=registry,
        )
        self._dependencies = Gauge(
            "headwater_dependency_available",
            "1 while a dependency answers, 0 while the scorer continues without it.",
            ["dependency"],
            registry=registry,
        )
        self._topic_metrics = TopicMetrics(registry)
        self._topics: set[str] = set()
        self._state_users = Gauge("headwater_state_users", "Users whose state is held in memory.", registry=registry)
        self.show_problems({})

    def declare_topics(self, topics: Iterable[str]) -> None:
        """Export topics as readable until a problem is shown for them."""
        self._topics |= set(topics)
        self.show_problems({})

    def show_problems(self, problems: Mapping[str, str]) -> None:
        """Set the availability of dependencies and topics.

        Args:
            problems: the problem of each dependency that has one; `kafka/<topic>` names a topic.
        """
        for name in DEPENDENCIES:
            self._dependencies.labels(name).set(name not in problems)
        unreadable = {topic_of(name.removeprefix("kafka/")) for name in problems if name.startswith("kafka/")}
        self._topics |= unreadable
        self._topic_metrics.show(self._topics, unreadable)

    def show_catalogue(self, items: int) -> None:
        """Set the number of items in the catalogue topics."""
        self._catalogue_items.set(items)

    def show_model(self, *, items: int, unused_vectors: int) -> None:
        """Set the figures of the model that is served.

        Args:
            items: the number of items that it can rank.
            unused_vectors: the number of item vectors that it ignores.
        """
        self._items.set(items)
        self._unused_vectors.set(unused_vectors)

    def show_state_users(self, users: int) -> None:
        """Set the number of users whose state is held in memory."""
        self._state_users.set(users)

    def adapter_swapped(self) -> None:
        """Count an adapter that was put into service."""
        self._swaps.labels("swapped").inc()

    def adapter_refused(self) -> None:
        """Count an announced adapter that could not be served."""
        self._swaps.labels("refused").inc()

    def swap_took(self, seconds: float) -> None:
        """Observe the time from an announcement to the swap."""
        self._swap_seconds.observe(seconds)
