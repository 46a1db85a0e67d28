"""Connections that bring nothing, or take nothing, are given up: uvicorn itself waits for them for ever.

It bounds the time between two requests of a connection, and neither the time over the head of one nor over the reading
of an answer.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from services.metrics.access import SlowOver
from services.settings.web import LimitSettings

GiveUp = Callable[[SlowOver], None]

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\r\n"
    b"too many connections\n"
)


def bounded_protocol(limits: LimitSettings, give_up: GiveUp) -> type[asyncio.Protocol]:
    """The protocol that uvicorn would have taken, with an end to its patience.

    Args:
        limits: How long a client may take over what.
        give_up: Told of each that was given up, by what it was slow over: `head`, `answer`, `connections`.
    """
    return type("BoundedProtocol", (_Bounded, AutoHTTPProtocol), {"limits": limits, "give_up": staticmethod(give_up)})


class _Bounded(asyncio.Protocol):
    """Goes before a protocol of uvicorn's, whose `connections`, `cycle` and `transport` it looks at."""

    limits: LimitSettings
    give_up: GiveUp
    connections: set[asyncio.Protocol]
    cycle: Any
    transport: asyncio.Transport

    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Gives a client the time for its first head, if there is room for it at all."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.give_up("connections")
            self.transport.write(FULL)
            self.transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stops the clock once a head is whole, and starts it with the first byte of the next."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head()
        elif self._head_timer is None:
            self._await_head()

    def pause_writing(self) -> None:
        """Gives a client the time to read what has piled up."""
        super().pause_writing()
        self._answer_timer = asyncio.get_running_loop().call_later(self.limits.answer_seconds, self._drop, "answer")

    def resume_writing(self) -> None:
        """Stops that clock."""
        super().resume_writing()
        self._stop_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks."""
        self._stop_head()
        self._stop_answer()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(self.limits.head_seconds, self._drop, "head")

    def _drop(self, slow_over: SlowOver) -> None:
        self._stop_head()
        self._stop_answer()
        self.give_up(slow_over)
        self.transport.abort()  # closing would wait until the client has read what it does not read

    def _stop_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
