"""Metrics of HTTP requests by route and status."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.metrics.series import REQUEST_BUCKETS_SECONDS

OTHER_ROUTE = "other"


class RequestMetrics:
    """HTTP requests by route template and status; requests outside the declared routes count as `other`.

    Args:
        registry: the registry where the series are declared.
        statuses: the statuses to export at 0 for each declared route.
    """

    def __init__(self, registry: CollectorRegistry, *, statuses: Sequence[str] = ("200", "422", "500", "503")) -> None:
        self._requests = Counter(
            "headwater_requests_total", "HTTP requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "headwater_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["route"],
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self._count_of, self._seconds_of = cache(self._requests.labels), cache(self._seconds.labels)
        self._statuses = statuses
        self._routes: set[str] = set()

    def declare(self, routes: Iterable[str]) -> None:
        """Export routes at 0, and count their requests under their own label from now on.

        Args:
            routes: the route templates of the application, such as `/v1/rank`.
        """
        self._routes |= set(routes)
        for route, status in product(sorted(self._routes), self._statuses):
            self._requests.labels(route, status)
            self._seconds.labels(route)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request.

        Args:
            route: the route template of the request, such as `/v1/rank`.
            status: the HTTP status of the answer.
            seconds: the time from arrival to the end of the answer.
        """
        label = route if route in self._routes else OTHER_ROUTE
        self._count_of(label, str(status)).inc()
        self._seconds_of(label).observe(seconds)
