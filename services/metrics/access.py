"""Metrics of access control and request limits, shared by all HTTP processes."""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

KeyReason = Literal["missing", "unknown", "expired", "revoked", "scope"]
SlowOver = Literal["head", "body", "answer", "connections"]


class AccessMetrics:
    """Requests that were refused before they reached a route, and the load of the process.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._turned_away = Counter(
            "headwater_turned_away_total", "Requests refused for lack of a valid key.", ["reason"], registry=registry
        )
        for reason in get_args(KeyReason):
            self._turned_away.labels(reason)
        self._keys_file_problem = Gauge(
            "headwater_keys_file_problem",
            "1 while the keys file is unusable and the keys read before stay in force, else 0.",
            registry=registry,
        )
        self._in_flight = Gauge("headwater_requests_in_flight", "Requests in flight.", registry=registry)
        self._shed = Counter(
            "headwater_requests_shed_total", "Requests answered 503 because too many were in flight.", registry=registry
        )
        self._late = Counter(
            "headwater_requests_late_total", "Requests answered 503 because their time was up.", registry=registry
        )
        self._slow_clients = Counter(
            "headwater_slow_clients_total",
            "Connections closed: too slow over the head or the body of a request or over reading an answer, or one "
            "connection too many.",
            ["over"],
            registry=registry,
        )
        for over in get_args(SlowOver):
            self._slow_clients.labels(over)

    def key_refused(self, reason: KeyReason) -> None:
        """Count a request that was refused for its key."""
        self._turned_away.labels(reason).inc()

    def show_keys_file(self, *, usable: bool) -> None:
        """Set whether the keys file can be used."""
        self._keys_file_problem.set(not usable)

    def show_in_flight(self, requests: int) -> None:
        """Set the number of requests in flight."""
        self._in_flight.set(requests)

    def request_shed(self) -> None:
        """Count a request answered 503 because too many were in flight."""
        self._shed.inc()

    def request_timed_out(self) -> None:
        """Count a request answered 503 because its time was up."""
        self._late.inc()

    def slow_client_dropped(self, over: SlowOver) -> None:
        """Count a connection that was closed for slowness, or for being one too many.

        Args:
            over: the phase in which the client was too slow.
        """
        self._slow_clients.labels(over).inc()
