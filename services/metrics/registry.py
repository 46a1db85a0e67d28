"""Metrics of the registry process."""

from prometheus_client import CollectorRegistry

from services.metrics.access import AccessMetrics
from services.metrics.requests import RequestMetrics


class RegistryMetrics:
    """HTTP requests and access control of the registry process.

    Args:
        registry: the registry where the series are declared.

    Attributes:
        http: HTTP requests by route and status.
        access: requests refused by access control or limits.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = RequestMetrics(registry)
        self.access = AccessMetrics(registry)
