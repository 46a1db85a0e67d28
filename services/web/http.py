"""Problem details (RFC 9457), request metrics and the metrics page of all HTTP applications."""

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import HeadwaterServiceError
from services.metrics.requests import OTHER_ROUTE, RequestMetrics

PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 20
RETRY = {"Retry-After": "1"}

_log = structlog.get_logger(__name__)


class ProblemError(HeadwaterServiceError):
    """An answer other than success, raised by a route and sent as RFC 9457 problem details.

    Args:
        status: the HTTP status code.
        detail: the problem with this request, and the remedy.
        headers: headers of the answer, such as `Retry-After`.
        extensions: further members of the problem document.
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **extensions: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions


def problem_response(
    request: Request, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **extensions: Any
) -> JSONResponse:
    """Return a response with RFC 9457 problem details.

    Args:
        request: the request that is answered; its path becomes `instance`.
        status: the HTTP status code.
        detail: the problem with this request, and the remedy.
        headers: headers of the answer.
        extensions: further members of the document.
    """
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        **extensions,
    }
    return JSONResponse(body, status_code=status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with an RFC 9457 document: its own, the framework's, and unexpected ones.

    Args:
        app: the FastAPI application.
    """

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return problem_response(request, error.status, error.detail, headers=error.headers, **error.extensions)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return problem_response(request, error.status_code, error.detail, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [{"pointer": _pointer(fault["loc"]), "detail": fault["msg"]} for fault in error.errors()[:MAX_FAULTS]]
        detail = "; ".join(f"{fault['pointer']}: {fault['detail']}" for fault in faults[:3])
        return problem_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=faults)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("request_failed", path=request.url.path, error=type(error).__name__)  # the server logs the traceback
        # The server closes the connection after such an error; without the header a client would reuse it.
        return problem_response(
            request,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal error; see the server's log",
            headers={"Connection": "close"},
        )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return the place of a fault in the request, such as ``body/items/0``."""
    return "/".join(str(part) for part in location)


def metrics_response(registry: CollectorRegistry) -> Response:
    """Return a response with a registry's metrics in the Prometheus text format.

    Args:
        registry: the process's registry of metrics.
    """
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestMetricsMiddleware:
    """ASGI middleware that counts and times each request under its route template.

    Args:
        app: the wrapped application.
        metrics: the metrics to update.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on, and count it if it was an HTTP request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)  # what the client gets when the application raises

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, record_status)
        finally:
            route = getattr(scope.get("route"), "path", OTHER_ROUTE)
            self._metrics.observe(route, status, time.perf_counter() - began)
