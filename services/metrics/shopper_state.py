"""Metrics of a scorer's reads from the store of shoppers' states."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.metrics.series import REQUEST_BUCKETS_SECONDS


class ShopperStateMetrics:
    """Reads of shoppers' states that another process keeps in a store.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reads = Counter(
            "headwater_state_reads_total",
            "Shoppers' states read, by source: the store, this process's copy, or none.",
            ["source"],
            registry=registry,
        )
        for source in ("store", "held", "none"):
            self._reads.labels(source)
        self._read_seconds = Histogram(
            "headwater_state_read_seconds",
            "Time to read one state from the store.",
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self._available = Gauge(
            "headwater_state_available",
            "1 while the store of shoppers' states answers and is kept up to date, else 0.",
            registry=registry,
        )
        self._refused = Counter(
            "headwater_state_refused_total",
            "Invalid entries of the store, left out.",
            registry=registry,
        )

    def read_from_store(self, *, seconds: float) -> None:
        """Count a state that the store returned, and observe the time that it took."""
        self._read_seconds.observe(seconds)
        self._reads.labels("store").inc()

    def read_from_copy(self, *, found: bool) -> None:
        """Count a state that was looked up in this process's copy because the store could not be read."""
        self._reads.labels("held" if found else "none").inc()

    def show_available(self, *, available: bool) -> None:
        """Set whether the store answers and is kept up to date."""
        self._available.set(available)

    def entries_refused(self, count: int) -> None:
        """Count invalid entries of the store."""
        self._refused.inc(count)
