"""The metrics page of a process that has no application of its own, behind the same access control as the others'."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry

from services.metrics.access import AccessMetrics
from services.web.access.key_check import reads
from services.web.access.wiring import Access, add_access
from services.web.http import add_problem_handlers, metrics_response
from services.web.server import announce, running


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsServer:
    """A metrics page served from a thread.

    Attributes:
        host: The address listened on.
        port: The port listened on.
    """

    host: str
    port: int
    _served: ExitStack

    def close(self) -> None:
        """Stops listening and waits for the thread."""
        self._served.close()


def start_metrics_server(
    registry: CollectorRegistry, host: str, port: int, *, access: Access | None = None
) -> MetricsServer:
    """Serves a registry from a thread, and `/healthz` beside it.

    Prints ``listening HOST PORT`` on standard output.

    Args:
        registry: The process's registry.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        access: Who may look; without it everyone.

    Raises:
        KeysError: The keys file cannot be used.
        ServeError: The address cannot be listened on, or must not be without keys.
    """
    served = ExitStack()
    url = served.enter_context(running(_application(registry, access or Access()), host=host, port=port))
    server = MetricsServer(host=host, port=urlsplit(url).port or 0, _served=served)
    announce(server.host, server.port)
    return server


def _application(registry: CollectorRegistry, access: Access) -> FastAPI:
    app = FastAPI(title="Headwater metrics", openapi_url=None)
    add_access(app, access, AccessMetrics(registry), needs=reads)
    add_problem_handlers(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """The process's metrics."""
        return metrics_response(registry)

    return app
