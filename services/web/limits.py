"""No more requests at once than can be answered well, and none for ever."""

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


class RequestLimits:
    """ASGI middleware that sheds what is too much, and answers when time is up.

    A request takes a place once its body has been received, so that slow clients hold up nobody else. It keeps its
    place until its work has ended, be it that its client has been told 503 by then: threads cannot be stopped, and work
    that goes on is load.

    Args:
        app: The application inside.
        limits: How many, how long.
        metrics: Where those are counted that were turned away.
        bodies: Receives the bodies of requests.
        exempt: Says of a path that it is bound to neither number nor time: probes, long polls.
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
        """Passes one connection on, or says that there is no room."""
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
            if self._is_full():  # others came while the body was received
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
        detail = f"{self._limits.max_requests} requests are being answered, which is all at once; ask again"
        answer = problem_response(Request(scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(scope, receive, send)


class _Exchange:
    """The answer to one request, against the clock.

    Args:
        scope: The request.
        receive: Gives its body.
        send: Takes its answer.
        limits: How long an answer may take.
        metrics: Counts late answers.
        until_seconds: When the answer must have begun, on the event loop's clock.
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
        self._timer = self._loop.call_at(until_seconds, self._time_is_up)
        self._answer_began = False
        self._apology: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Passes on a piece of the answer; what comes after time was up is dropped."""
        if self._apology is None:
            self._answer_began = True
            await self._send(message)

    async def end(self) -> None:
        """Stops the clock, and sees to it that a late client has its answer."""
        self._timer.cancel()
        if self._apology is not None:
            await self._apology

    def _time_is_up(self) -> None:
        if not self._answer_began:
            self._metrics.request_timed_out()
            self._apology = self._loop.create_task(self._apologise())

    async def _apologise(self) -> None:
        detail = f"no answer was found within {self._limits.request_seconds:g} s; ask again"
        answer = problem_response(Request(self._scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(self._scope, self._receive, self._send)
