"""Metrics of the adapter that a process published or serves, the same in updater and scorer."""

from prometheus_client import CollectorRegistry, Gauge


class AdapterMetrics:
    """Version and freshness of the adapter that was published or is served.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._version = Gauge(
            "headwater_adapter_version", "Version of the adapter published or served last.", registry=registry
        )
        self._published_timestamp_seconds = Gauge(
            "headwater_adapter_published_timestamp_seconds", "Time at which it was published.", registry=registry
        )
        self._watermark_timestamp_seconds = Gauge(
            "headwater_adapter_watermark_timestamp_seconds",
            "Event time up to which it has learnt.",
            registry=registry,
        )

    def show(self, version: int, *, published_at_ms: int, watermark_ms: int) -> None:
        """Set the three series to another adapter.

        Args:
            version: the adapter's version.
            published_at_ms: the time of its publication, epoch milliseconds.
            watermark_ms: the event time up to which it has learnt, epoch milliseconds.
        """
        self._version.set(version)
        self._published_timestamp_seconds.set(published_at_ms / 1000)
        self._watermark_timestamp_seconds.set(watermark_ms / 1000)
