"""Timeouts of connections whose client neither sends nor reads.

uvicorn limits the time between two requests of a connection, but neither the time for the head of a request nor the
time for reading an answer.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from services.metrics.access import SlowOver
from services.settings.web import LimitSettings

OnDrop = Callable[[SlowOver], None]

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\r\n"
    b"too many connections\n"
)


def timeout_protocol(limits: LimitSettings, on_drop: OnDrop) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class with timeouts and a limit of connections.

    Args:
        limits: the timeouts, and the most connections at a time.
        on_drop: is called with the cause for each dropped client: `head`, `answer` or `connections`.
    """
    return type("TimeoutProtocol", (_Timeouts, AutoHTTPProtocol), {"limits": limits, "on_drop": staticmethod(on_drop)})


class _Timeouts(asyncio.Protocol):
    """Mixin for a protocol class of uvicorn, whose `connections`, `cycle` and `transport` it reads."""

    limits: LimitSettings
    on_drop: OnDrop
    connections: set[asyncio.Protocol]
    cycle: Any
    transport: asyncio.Transport

    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first head, or refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.on_drop("connections")
            self.transport.write(FULL)
            self.transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once a head is complete, and start it with the first byte of the next."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head()
        elif self._head_timer is None:
            self._await_head()

    def pause_writing(self) -> None:
        """Start the timer for reading the buffered answer."""
        super().pause_writing()
        self._answer_timer = asyncio.get_running_loop().call_later(self.limits.answer_seconds, self._drop, "answer")

    def resume_writing(self) -> None:
        """Stop the timer for reading the answer."""
        super().resume_writing()
        self._stop_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_head()
        self._stop_answer()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(self.limits.head_seconds, self._drop, "head")

    def _drop(self, slow_over: SlowOver) -> None:
        self._stop_head()
        self._stop_answer()
        self.on_drop(slow_over)
        self.transport.abort()  # close() would wait until the client has read the buffered answer

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
