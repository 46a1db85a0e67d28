"""Deadlines for HTTP requests as a whole.

The timeouts of httpx limit each wait for bytes. A server that sends one byte a second never exceeds them, and would
block its caller for ever. Here every operation on the connection, from the connect to the last byte of the body, gets
at most the time that is left of the request.
"""

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

DEADLINE = "deadline"  # the name of the request extension that holds a `Deadline`
READ_SECONDS = 20.0

_TRANSFER_HEADERS = ("content-encoding", "content-length", "transfer-encoding")


class Deadline:
    """The time limit of one request.

    Args:
        seconds: time limit of the whole request.
        bytes_per_second: extends the deadline by the time that the received bytes take at this rate; None does not
            extend it.
    """

    def __init__(self, seconds: float, *, bytes_per_second: float | None = None) -> None:
        self._seconds, self._rate = seconds, bytes_per_second
        self._ends = time.monotonic() + seconds

    def received(self, count: int) -> None:
        """Extend the deadline for `count` received bytes of the body."""
        if self._rate is not None:
            self._ends += count / self._rate

    def timeout(self, operation_seconds: float | None) -> float:
        """Return the seconds that the next operation may take.

        Args:
            operation_seconds: timeout of the operation alone; None sets none.

        Raises:
            httpcore.ReadTimeout: no time is left.
        """
        left_seconds = self._ends - time.monotonic()
        if left_seconds <= 0:
            raise httpcore.ReadTimeout(f"the answer was not complete within its deadline of {self._seconds:g} s")
        return left_seconds if operation_seconds is None else min(left_seconds, operation_seconds)


def bounded_request(
    client: httpx.Client, method: str, url: str, *, seconds: float, limit_bytes: int, **options: Any
) -> httpx.Response:
    """Send a request and read the response within a deadline and a size limit.

    Args:
        client: a client made by `internal_client`.
        method: HTTP method, such as `GET`.
        url: absolute, or relative to the client's `base_url`.
        seconds: deadline of the request as a whole.
        limit_bytes: largest accepted body, bytes.
        **options: further arguments of `httpx.Client.stream`.

    Raises:
        httpx.HTTPError: the request failed, or exceeded its deadline or size.
    """
    extensions = {DEADLINE: Deadline(seconds)}
    data = bytearray()
    with client.stream(method, url, timeout=seconds, extensions=extensions, **options) as response:
        for part in response.iter_bytes():
            data += part
            if len(data) > limit_bytes:
                raise httpx.ReadError(f"the answer is longer than {limit_bytes} bytes", request=response.request)
    headers = {name: value for name, value in response.headers.items() if name not in _TRANSFER_HEADERS}
    return httpx.Response(response.status_code, headers=headers, content=bytes(data), request=response.request)


class DeadlineTransport(httpx.HTTPTransport):
    """A transport without proxies that enforces the `Deadline` in a request's `extensions[DEADLINE]`.

    Args:
        retries: number of further attempts to connect.
        verify: TLS context with the trusted certificates.
        limits: limits of the connection pool.
    """

    def __init__(self, *, retries: int, verify: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=verify, trust_env=False)
        self._pool = httpcore.ConnectionPool(  # httpx has no parameter for the network backend
            ssl_context=verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            retries=retries,
            network_backend=_DeadlineBackend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response's body is read later, under the same deadline."""
        deadline = request.extensions.get(DEADLINE)
        with _enforced(deadline):
            response = super().handle_request(request)
        if deadline is not None and isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _DeadlineBody(response.stream, deadline)
        return response


class _DeadlineBody(httpx.SyncByteStream):
    """A response body that is read under its deadline in any thread."""

    def __init__(self, body: httpx.SyncByteStream, deadline: Deadline) -> None:
        self._body, self._deadline = body, deadline

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._body)
        while True:
            with _enforced(self._deadline):
                part = next(parts, None)
            if part is None:
                return
            self._deadline.received(len(part))
            yield part

    def close(self) -> None:
        self._body.close()


_current = threading.local()  # attribute `deadline`: that of the request this thread is working on


@contextmanager
def _enforced(deadline: Deadline | None) -> Iterator[None]:
    previous, _current.deadline = getattr(_current, "deadline", None), deadline
    try:
        yield
    finally:
        _current.deadline = previous


@contextmanager
def _timeout(operation_seconds: float | None) -> Iterator[float | None]:
    """Yield the timeout of one operation; if the deadline has passed, the error raised names it."""
    deadline: Deadline | None = getattr(_current, "deadline", None)
    if deadline is None:
        yield operation_seconds
        return
    try:
        yield deadline.timeout(operation_seconds)
    except httpcore.TimeoutException:
        deadline.timeout(None)
        raise


class _DeadlineBackend(httpcore.NetworkBackend):
    """A network backend whose connections enforce the deadline of the thread's request."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        with _timeout(timeout) as seconds:
            stream = self._backend.connect_tcp(host, port, seconds, local_address, socket_options)
        return _DeadlineStream(stream)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _timeout(timeout) as seconds:
            return self._stream.read(max_bytes, seconds)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _timeout(timeout) as seconds:
            self._stream.write(buffer, seconds)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _timeout(timeout) as seconds:
            return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
