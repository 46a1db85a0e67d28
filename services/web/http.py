"""What the applications over HTTP share: problem details and the metrics page."""

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
FAULTS_TOLD = 20
RETRY = {"Retry-After": "1"}

_log = structlog.get_logger(__name__)


class ProblemError(HeadwaterServiceError):
    """An answer other than success, raised by a route and sent as RFC 9457 problem details.

    Args:
        status: The HTTP status.
        detail: What went wrong with this request, and what to do about it.
        headers: Headers of the answer, such as `Retry-After`.
        extensions: Further members of the problem document.
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
    """Renders RFC 9457 problem details.

    Args:
        request: The request that is answered; its path becomes `instance`.
        status: The HTTP status.
        detail: What went wrong with this request.
        headers: Headers of the answer.
        extensions: Further members of the document.
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
    """Makes every error of `app` an RFC 9457 document: its own, the framework's, and the unexpected.

    Args:
        app: The application.
    """

    @app.exception_handler(ProblemError)
    async def own(request: Request, error: ProblemError) -> Response:
        return problem_response(request, error.status, error.detail, headers=error.headers, **error.extensions)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return problem_response(request, error.status_code, error.detail, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [{"pointer": _pointer(fault["loc"]), "detail": fault["msg"]} for fault in error.errors()[:FAULTS_TOLD]]
        detail = "; ".join(f"{fault['pointer']}: {fault['detail']}" for fault in faults[:3])
        return problem_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=faults)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("request_failed", path=request.url.path, error=type(error).__name__)  # the server logs the traceback
        # The server closes the connection after such an error: a client not told of it sends its next request there.
        return problem_response(
            request,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal error; see the server's log",
            headers={"Connection": "close"},
        )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Renders where in the request a fault is: ``body/items/0``."""
    return "/".join(str(part) for part in location)


def metrics_response(registry: CollectorRegistry) -> Response:
    """Renders a registry in the Prometheus text format.

    Args:
        registry: The process's registry.
    """
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestMeter:
    """ASGI middleware that counts and times each request under its route template.

    Add it with ``app.add_middleware(RequestMeter, metrics=metrics.http)``.

    Args:
        app: The application inside.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one connection on, and counts it when it was an HTTP request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)  # what the client gets when the application raises

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", OTHER_ROUTE)
            self._metrics.observe(route, status, time.perf_counter() - began)
