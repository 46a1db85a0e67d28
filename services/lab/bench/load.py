"""Load generator: ``python -m services.lab.bench.load`` reads a plan, carries it out and writes its measurements.

It is a process of its own, so that it takes no processor time of the server or of the process that judges. It imports
nothing heavy.
"""

import asyncio
import itertools
import random
import re
import selectors
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools

from services.lab.bench.plan import LoadPlan, LoadResult

VERSION = re.compile(rb'"adapter_version":\s*(\d+)')
LATE_SECONDS = 0.0005  # remaining wait during which the loop spins instead of sleeping


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: Callable[[int, bytes], None] | None = None
        self._begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport  # type: ignore[assignment]  # of a stream connection

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request under way."""
        self._transport = None
        self._finish(0, repr(error or "connection closed").encode())

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(0, repr(error).encode())

    def on_body(self, part: bytes) -> None:
        """Collect a part of the body; called by the parser."""
        self._body += part

    def on_message_complete(self) -> None:
        """Finish the request; called by the parser."""
        status, keep, body = self._parser.get_status_code(), self._parser.should_keep_alive(), bytes(self._body)
        if not keep and self._transport is not None:
            self._transport.close()
            self._transport = None
        self._begin()
        self._finish(status, body)

    @property
    def is_open(self) -> bool:
        """Return whether a request can be sent."""
        return self._transport is not None

    def send(self, request: bytes, done: Callable[[int, bytes], None]) -> None:
        """Send a request; `done` is called once with status and body, status 0 if there is no answer."""
        if self._transport is None:
            return done(0, b"not connected")
        self._done = done
        self._transport.write(request)

    def give_up(self) -> None:
        """Abort the connection, and with it the request under way."""
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        self._parser, self._body = httptools.HttpResponseParser(self), bytearray()

    def _finish(self, status: int, body: bytes) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(status, body)


class Sender:
    """Carries out a plan."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._requests = itertools.cycle(_requests(plan))
        self._idle: deque[Connection] = deque()
        self._waiting: deque[tuple[float, bytes]] = deque()  # due, request
        self._under_way = 0
        self._progressed = asyncio.Event()
        self._load = LoadResult(
            seconds=0, answered=0, failed=0, first_failure="", took_ms=[], late_ms=[], first_answers={}
        )

    async def run(self) -> LoadResult:
        """Send the requests, wait for those under way, and return the result."""
        for _ in range(self._plan.connections):
            self._idle.append(await self._connected())
        began = time.perf_counter()
        await (self._as_answers_come() if self._plan.per_second is None else self._at_rate(began))
        self._load.seconds = time.perf_counter() - began
        deadline = time.perf_counter() + self._plan.timeout_seconds
        while self._under_way or self._waiting:
            self._progressed.clear()
            try:
                await asyncio.wait_for(self._progressed.wait(), max(0.001, deadline - time.perf_counter()))
            except TimeoutError:
                self._count_failure(f"{self._under_way + len(self._waiting)} requests without an answer", self._left())
                break
        return self._load

    def _left(self) -> int:
        return self._under_way + len(self._waiting)

    async def _at_rate(self, began: float) -> None:
        """Start requests at the rate of the plan, at random times (a Poisson process)."""
        chance, due = random.Random(self._plan.seed), began  # noqa: S311 - no secret
        while not self._is_over(began):
            due += chance.expovariate(self._plan.per_second or 1.0)
            while (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left if left > LATE_SECONDS else 0)
            self._load.late_ms.append(1000 * (time.perf_counter() - due))
            self._waiting.append((due, next(self._requests)))
            self._send_waiting()

    async def _as_answers_come(self) -> None:
        """Keep every connection busy."""
        began = time.perf_counter()
        while not self._is_over(began):
            self._progressed.clear()
            while self._idle:
                self._waiting.append((time.perf_counter(), next(self._requests)))
                self._send_waiting()
            await self._progressed.wait()

    def _is_over(self, began: float) -> bool:
        enough = self._plan.until_versions
        if enough is not None and len(self._load.first_answers) >= enough:
            return True
        return time.perf_counter() - began >= self._plan.seconds

    def _send_waiting(self) -> None:
        while self._idle and self._waiting:
            connection, (due, request) = self._idle.popleft(), self._waiting.popleft()
            self._under_way += 1
            timer = asyncio.get_running_loop().call_later(self._plan.timeout_seconds, connection.give_up)

            def done(
                status: int,
                body: bytes,
                *,
                due: float = due,
                connection: Connection = connection,
                timer: asyncio.TimerHandle = timer,
            ) -> None:
                timer.cancel()
                self._answered(status, body, due)
                self._under_way -= 1
                self._put_back(connection)

            connection.send(request, done)

    def _answered(self, status: int, body: bytes, due: float) -> None:
        if status != HTTPStatus.OK:
            return self._count_failure(f"status {status}: {body[:300]!r}", 1)
        self._load.took_ms.append(1000 * (time.perf_counter() - due))
        self._load.answered += 1
        if version := VERSION.search(body):
            self._load.first_answers.setdefault(int(version[1]), time.time())

    def _count_failure(self, problem: str, requests: int) -> None:
        self._load.failed += requests
        self._load.first_failure = self._load.first_failure or problem

    def _put_back(self, connection: Connection) -> None:
        if connection.is_open:
            self._idle.append(connection)
            self._progressed.set()
            self._send_waiting()
        else:
            self._reconnecting = asyncio.ensure_future(self._replace())

    async def _replace(self) -> None:
        try:
            self._idle.append(await self._connected())
        except OSError as error:
            self._count_failure(repr(error), 1)
            await asyncio.sleep(0.1)
            self._reconnecting = asyncio.ensure_future(self._replace())
            return
        self._progressed.set()
        self._send_waiting()

    async def _connected(self) -> Connection:
        parts = urlsplit(self._plan.url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, parts.hostname or "127.0.0.1", port, ssl=secure
        )
        return connection


def _requests(plan: LoadPlan) -> list[bytes]:
    """Return the bytes of each request."""
    parts = urlsplit(plan.url)
    fields = {"host": parts.netloc, "content-type": "application/json", **plan.headers}
    head = f"POST {parts.path}{plan.path} HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in fields.items()
    )
    return [
        f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in (each.encode() for each in plan.bodies)
    ]


def main() -> None:
    """Read a plan from standard input, and write the result to standard output."""
    plan = LoadPlan.model_validate_json(sys.stdin.read())
    with asyncio.Runner(loop_factory=_punctual_loop) as runner:
        sys.stdout.write(runner.run(Sender(plan).run()).model_dump_json())


def _punctual_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that wakes to the microsecond: epoll rounds up to milliseconds, which adds latency."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    main()
