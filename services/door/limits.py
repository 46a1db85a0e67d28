"""No more requests at once than can be answered well, and none for ever."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.door.settings import LimitSettings
from services.http import problem_response
from services.metrics import DoorMetrics

RETRY = {"Retry-After": "1"}


class RequestLimits:
    """ASGI middleware that sheds what is too much, and answers when time is up.

    A request keeps its place until its work has ended, be it that its client has been told 503 by then: threads cannot
    be stopped, and work that goes on is load.

    Args:
        app: The application inside.
        limits: How many, how long.
        metrics: Where those are counted that were turned away.
        exempt: Says of a path that it is bound to neither number nor time: probes, long polls.
    """

    def __init__(
        self, app: ASGIApp, *, limits: LimitSettings, metrics: DoorMetrics, exempt: Callable[[str], bool]
    ) -> None:
        self._app, self._limits, self._metrics, self._exempt = app, limits, metrics, exempt
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one connection on, or says that there is no room."""
        if scope["type"] != "http" or self._exempt(scope["path"]):
            return await self._app(scope, receive, send)
        if self._in_flight >= self._limits.max_requests:
            return await self._shed(scope, receive, send)
        self._count(1)
        exchange = _Exchange(scope, receive, send, self._limits, self._metrics)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._count(-1)
            await exchange.end()

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight.set(self._in_flight)

    async def _shed(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.shed.inc()
        detail = f"{self._limits.max_requests} requests are being answered, which is all at once; ask again"
        answer = problem_response(Request(scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(scope, receive, send)


class _Exchange:
    """One request and its answer, against the clock.

    Args:
        scope: Of the request.
        receive: Gives its body.
        send: Takes its answer.
        limits: How long each may take.
        metrics: Where is counted who took longer.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: LimitSettings, metrics: DoorMetrics) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limits, self._metrics = limits, metrics
        self._loop = asyncio.get_running_loop()
        self._body_by_seconds = self._loop.time() + limits.body_seconds
        self._timer = self._loop.call_later(limits.request_seconds, self._time_is_up)
        self._body_read = self._answer_began = False
        self._apology: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """The next piece of the body, in time or not at all."""
        if self._body_read:  # what may come now is the client's leaving
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._body_by_seconds):
                message = await self._receive()
        except TimeoutError:
            self._metrics.slow_clients.labels("body").inc()
            raise HTTPException(  # the one error that FastAPI lets pass while it reads a body
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body must be there within {self._limits.body_seconds:g} s; send it faster, or less of it",
                headers={"Connection": "close"},
            ) from None
        self._body_read = not message.get("more_body", False)
        return message

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
            self._metrics.late.inc()
            self._apology = self._loop.create_task(self._apologise())

    async def _apologise(self) -> None:
        detail = f"no answer was found within {self._limits.request_seconds:g} s; ask again"
        answer = problem_response(Request(self._scope), HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY)
        await answer(self._scope, self._receive, self._send)
