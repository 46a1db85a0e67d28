"""Receipt of request bodies before the application runs: decompressed, with limits of size and time."""

import asyncio
import zlib
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from services.metrics.access import AccessMetrics
from services.settings.web import LimitSettings
from services.web.http import RETRY

BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
GZIP_NAMES = frozenset({"gzip", "x-gzip"})
GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS  # expect gzip's header and checksum, not zlib's
CLOSE = {"Connection": "close"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyRules:
    """Limits of the bodies that one application accepts.

    Attributes:
        max_bytes: size of the largest body, both as sent and decompressed.
        remedy: advice for a client with a larger body.
    """

    max_bytes: int = 1_048_576
    remedy: str = "send less at a time"


@dataclass(eq=False, slots=True)
class _Reading:
    """A body that is being received.

    Attributes:
        timeout: ends the reading if the client takes too long, or if its memory is needed.
        data: decompressed bytes received so far.
        evicted: whether the reading was ended because its memory was needed.
    """

    timeout: asyncio.Timeout
    data: bytearray = field(default_factory=bytearray)
    evicted: bool = False


class BodyReader:
    """Reader of the bodies of one application's requests.

    A request that is still sending its body uses memory, but does not count as a concurrent request. The memory of all
    unfinished bodies together is bounded: if it runs out, the largest one is refused, so that small ones pass.

    Args:
        rules: limits of one body.
        limits: time for one body, and memory for all unfinished ones.
        metrics: the metrics that count refused clients.
    """

    def __init__(self, rules: BodyRules, limits: LimitSettings, metrics: AccessMetrics) -> None:
        self._rules, self._body_seconds, self._metrics = rules, limits.body_seconds, metrics
        self._most_bytes = max(limits.unfinished_body_bytes, rules.max_bytes)  # one body always fits
        self._held_bytes = 0
        self._readings: set[_Reading] = set()

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Receive and decompress one body.

        `Content-Encoding` is removed from the headers of the request, since the returned body is plain.

        Args:
            scope: the ASGI scope of the request.
            receive: the channel for the parts of its body.

        Raises:
            HTTPException: 400 if the body is damaged or incomplete, 408 if it is slow, 413 if it is large, 415 if its
                encoding is not known, 503 if the memory for unfinished bodies ran out.
        """
        sent = Headers(scope=scope)
        packed = _is_packed(sent)
        self._require_small(int(sent.get("content-length", "0")))
        reading = _Reading(asyncio.timeout(self._body_seconds))
        self._readings.add(reading)
        try:
            async with reading.timeout:
                await self._fill(reading, receive, _Gunzip() if packed else None)
        except TimeoutError:
            raise self._gave_up(reading) from None
        finally:
            self._readings.discard(reading)
            self._held_bytes -= len(reading.data)
        if packed:
            headers = MutableHeaders(scope=scope)
            del headers["content-encoding"]
            headers["content-length"] = str(len(reading.data))
        return bytes(reading.data)

    async def _fill(self, reading: _Reading, receive: Receive, gunzip: "_Gunzip | None") -> None:
        received_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _bad_request("the client closed the connection before the body was complete")
            part = message.get("body", b"")
            received_bytes += len(part)
            self._require_small(received_bytes)
            if gunzip is not None:
                part = gunzip.feed(part, at_most=self._rules.max_bytes + 1 - len(reading.data))
            self._require_small(len(reading.data) + len(part))
            self._hold(reading, part)
            more = message.get("more_body", False)
        if gunzip is not None:
            gunzip.finish()

    def _hold(self, reading: _Reading, part: bytes) -> None:
        """Keep a part of a body, and refuse the largest unfinished body if there are too many bytes by now."""
        reading.data += part
        self._held_bytes += len(part)
        while self._held_bytes > self._most_bytes:
            largest = max(self._readings, key=lambda unfinished: len(unfinished.data))
            self._held_bytes -= len(largest.data)
            largest.data = bytearray()
            largest.evicted = True
            if largest is reading:
                raise TimeoutError
            if not largest.timeout.expired():
                largest.timeout.reschedule(asyncio.get_running_loop().time())

    def _require_small(self, size_bytes: int) -> None:
        if size_bytes > self._rules.max_bytes:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body, decompressed, must have at most {self._rules.max_bytes} bytes; {self._rules.remedy}",
            )

    def _gave_up(self, reading: _Reading) -> HTTPException:
        if reading.evicted:
            self._metrics.request_shed()
            detail = "too many large bodies are being received at once; send it again, or send less at a time"
            return HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY | CLOSE)
        self._metrics.slow_client_dropped("body")
        detail = f"the body must arrive within {self._body_seconds:g} s; send it faster, or less of it"
        return HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, headers=CLOSE)


class _Gunzip:
    """Incremental gzip decompressor; a body may be several gzip members one after another (RFC 1952)."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_WINDOW_BITS)

    def feed(self, packed: bytes, *, at_most: int) -> bytes:
        """Decompress some bytes, and stop at `at_most` bytes of output."""
        unpacked = bytearray()
        while packed and len(unpacked) < at_most:
            if self._member.eof:
                self._member = zlib.decompressobj(GZIP_WINDOW_BITS)
            try:
                unpacked += self._member.decompress(packed, at_most - len(unpacked))
            except zlib.error as error:
                raise _bad_request(f"the body must be gzip, as `Content-Encoding` says, got {error}") from None
            packed = self._member.unused_data
        return bytes(unpacked)

    def finish(self) -> None:
        """Refuse a body that ends within a gzip member."""
        if not self._member.eof:
            raise _bad_request("the body must be complete gzip, got one that is cut off; send it whole")


def replay(body: bytes | HTTPException, receive: Receive) -> Receive:
    """Return a channel that yields a received body as one message, followed by the client's further messages.

    Args:
        body: the whole body, or an error to raise in its place, so that the route (or 404, 405) answers.
        receive: the rest of the connection.
    """
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if isinstance(body, HTTPException):
            raise body  # the one error that FastAPI lets pass while it reads a body
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def _is_packed(headers: Headers) -> bool:
    """Return whether the body is gzip. Any other content encoding is refused."""
    encoding = ", ".join(headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in GZIP_NAMES:
        return True
    detail = f"`Content-Encoding` must be gzip, or be left out, got {encoding[:100]!r}; send the body plain or as gzip"
    raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "gzip, identity"})


def _bad_request(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, detail)
