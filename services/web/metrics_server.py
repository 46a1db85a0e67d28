"""Metrics page of a process without an HTTP application of its own, with the same access control."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry

from services.metrics.access import AccessMetrics
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import always_read
from services.web.http import add_problem_handlers, metrics_response
from services.web.server import print_address, running


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsServer:
    """A metrics page that a thread serves.

    Attributes:
        host: the address of the server.
        port: the port of the server.
    """

    host: str
    port: int
    _served: ExitStack

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        self._served.close()


def start_metrics_server(
    registry: CollectorRegistry, host: str, port: int, *, access: AccessRules | None = None
) -> MetricsServer:
    """Serve `/metrics` and `/healthz` from a thread, and print ``listening HOST PORT`` on standard output.

    Args:
        registry: the process's registry of metrics.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        access: the access rules; None lets everyone in.

    Raises:
        KeysError: the keys file cannot be used.
        ServeError: the address cannot be listened on, or needs keys.
    """
    served = ExitStack()
    url = served.enter_context(running(_application(registry, access or AccessRules()), host=host, port=port))
    server = MetricsServer(host=host, port=urlsplit(url).port or 0, _served=served)
    print_address(server.host, server.port)
    return server


def _application(registry: CollectorRegistry, access: AccessRules) -> FastAPI:
    app = FastAPI(title="Headwater metrics", openapi_url=None)
    install_access_control(app, access, AccessMetrics(registry), required_scope=always_read)
    add_problem_handlers(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process runs."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the process's metrics."""
        return metrics_response(registry)

    return app
