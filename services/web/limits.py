"""Limits of concurrent requests and of the time for one answer."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.metrics.access import AccessMetrics
from services.settings.web import LimitSettings
from services.web.bodies import BODILESS_METHODS, BodyReader, replay
from services.web.http import RETRY, problem_response


class RequestLimitMiddleware:
    """ASGI middleware that answers 503 to requests beyond the limit, and to requests that take too long.

    A request counts from the moment its body has been received, so that slow clients hold up nobody else. It counts
    until its work has ended, even if its client was answered 503 before: threads cannot be stopped, and unfinished work
    is load.

    Args:
        app: the wrapped application.
        limits: the most requests at a time, and the time for one answer.
        metrics: the metrics that count refused requests.
        bodies: the reader of request bodies.
        exempt: a test of a path for probes and long polls, which have no limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: LimitSettings,
        metrics: AccessMetrics,
        bodies: BodyReader,
        exempt: Callable[[str], bool],
    ) -> None:
        self._app, self._limits, self._metrics, self._bodies, self._exempt = app, limits, metrics, bodies, exempt
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on, or answer 503 if too many requests are in flight."""
        if scope["type"] != "http" or self._exempt(scope["path"]):
            return await self._app(scope, receive, send)
        until_seconds = asyncio.get_running_loop().time() + self._limits.request_seconds
        if self._is_full():
            return await self._shed(scope, receive, send)
        if scope["method"] not in BODILESS_METHODS:
            try:
                receive = replay(await self._bodies.read(scope, receive), receive)
            except HTTPException as error:
                receive = replay(error, receive)
            if self._is_full():  # other requests arrived while the body was received
                return await self._shed(scope, receive, send)
        await self._answer(scope, receive, send, until_seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, until_seconds: float) -> None:
        self._count(1)
        exchange = _Exchange(scope, receive, send, self._limits, self._metrics, until_seconds)
        try:
            await self._app(scope, receive, exchange.send)
        finally:
            self._count(-1)
            await exchange.end()

    def _is_full(self) -> bool:
        return self._in_flight >= self._limits.max_requests

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.show_in_flight(self._in_flight)

    async def _shed(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.request_shed()
        detail = f"{self._limits.max_requests} requests are in progress, the most at a time; try again"
        answer = problem_response(Request(scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(scope, receive, send)


class _Exchange:
    """The answer to one request, with a deadline.

    Args:
        scope: the ASGI scope of the request.
        receive: the channel for its body.
        send: the channel for its answer.
        limits: the time for one answer.
        metrics: the metrics that count late answers.
        until_seconds: the time on the event loop's clock by which the answer must begin.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limits: LimitSettings,
        metrics: AccessMetrics,
        until_seconds: float,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limits, self._metrics = limits, metrics
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(until_seconds, self._on_deadline)
        self._answer_began = False
        self._timeout_answer: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on; parts after the deadline are dropped."""
        if self._timeout_answer is None:
            self._answer_began = True
            await self._send(message)

    async def end(self) -> None:
        """Stop the timer; if the deadline has passed, wait until the 503 is sent."""
        self._timer.cancel()
        if self._timeout_answer is not None:
            await self._timeout_answer

    def _on_deadline(self) -> None:
        if not self._answer_began:
            self._metrics.request_timed_out()
            self._timeout_answer = self._loop.create_task(self._answer_timeout())

    async def _answer_timeout(self) -> None:
        detail = f"no answer was ready within {self._limits.request_seconds:g} s; ask again"
        answer = problem_response(Request(self._scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(self._scope, self._receive, self._send)
