"""Turn callers away that show no key, or none that is good for what they ask."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.audit import AuditError, AuditLog
from services.metrics.access import AccessMetrics, KeyReason
from services.web.access.keys import Key, Keys, KeysError, KeysFile
from services.web.access.scopes import Scope as KeyScope
from services.web.http import problem_response

LOOK_SECONDS = 1.0  # a key that was made or revoked counts after so long at most
OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # for probes, which have no keys
CHALLENGE = 'Bearer realm="headwater"'

# What a call needs, by method and path; None is open to all.
Needs = Callable[[str, str], KeyScope | None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: The name and the id of the key, `nobody` where no keys are asked for.
        address: Where from.
    """

    name: str
    address: str


def caller_of(request: Request) -> Caller:
    """Who sent a request.

    Args:
        request: Has passed the guard, if there is one.
    """
    name = getattr(request.state, "caller", "nobody")
    return Caller(name=name, address=request.client.host if request.client else "")


class KeyRing:
    """The keys that are good now; read again when their file has changed.

    A file that cannot be used any more changes nothing: those keys count that were read last, and the log and the
    metrics tell.

    Args:
        path: Of the keys file.
        metrics: Where a file that cannot be used is told.

    Raises:
        KeysError: There is no keys file to begin with.
    """

    def __init__(self, path: Path, metrics: AccessMetrics) -> None:
        self._path, self._metrics = path, metrics
        self._seen = self._sight()
        self._keys: Keys = KeysFile(path).read()
        self._next_look_seconds = time.monotonic() + LOOK_SECONDS
        self._metrics.show_keys_file(usable=True)

    def find(self, token: str) -> Key | None:
        """The key that a caller shows, whatever its state."""
        if time.monotonic() >= self._next_look_seconds:
            self._look()
        return self._keys.find(token)

    def _look(self) -> None:
        self._next_look_seconds = time.monotonic() + LOOK_SECONDS
        sight = self._sight()
        if sight == self._seen:
            return
        self._seen = sight
        try:
            self._keys = KeysFile(self._path).read()
        except KeysError as error:
            self._metrics.show_keys_file(usable=False)
            log.error("keys_file_unusable", problem=str(error), served="the keys that were read last")
            return
        self._metrics.show_keys_file(usable=True)
        log.info("keys_read", keys=len(self._keys.keys))

    def _sight(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


class KeyGuard:
    """ASGI middleware that asks for ``Authorization: Bearer KEY``.

    Args:
        app: The application inside.
        ring: The keys.
        needs: What a call needs.
        metrics: Where those are counted that were turned away.
        audit: Told of those with a key who asked for more than it is good for.
    """

    def __init__(
        self, app: ASGIApp, *, ring: KeyRing, needs: Needs, metrics: AccessMetrics, audit: AuditLog | None = None
    ) -> None:
        self._app, self._ring, self._needs, self._metrics, self._audit = app, ring, needs, metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one connection on when its caller may ask what it asks."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        needed = self._needs(scope["method"], scope["path"])
        if needed is None:
            return await self._app(scope, receive, send)
        token = _token(Headers(scope=scope).get("authorization", ""))
        key = self._ring.find(token) if token else None
        reason = _objection(token, key, needed)
        if reason is None and key is not None:
            scope.setdefault("state", {})["caller"] = f"{key.name}/{key.id}"
            return await self._app(scope, receive, send)
        await self._turn_away(scope, receive, send, key, needed, reason or "unknown")

    async def _turn_away(
        self, scope: Scope, receive: Receive, send: Send, key: Key | None, needed: KeyScope, reason: KeyReason
    ) -> None:
        self._metrics.key_refused(reason)
        request = Request(scope)
        if key is not None:
            log.warning("key_refused", reason=reason, key=key.id, name=key.name, path=request.url.path)
        if key is not None and needed is KeyScope.admin and self._audit is not None:
            await self._tell(self._audit, request, key, reason)
        if reason == "scope":
            detail = f"this call needs a key of scope `{needed}`; yours has {', '.join(key.scopes if key else ())}"
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'
            answer = problem_response(request, HTTPStatus.FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
        else:
            # Whoever has no good key is not told why: whether it was one once is nobody else's business.
            detail = f"this call needs a key of scope `{needed}`; send `Authorization: Bearer KEY`"
            challenge = CHALLENGE if reason == "missing" else f'{CHALLENGE}, error="invalid_token"'
            answer = problem_response(request, HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
        await answer(scope, receive, send)

    @staticmethod
    async def _tell(audit: AuditLog, request: Request, key: Key, reason: str) -> None:
        action, by = f"{request.method} {request.url.path}", f"{key.name}/{key.id}"
        address = request.client.host if request.client else ""

        def record() -> None:
            audit.record(action, "refused", by=by, address=address, reason=reason)

        try:
            await run_in_threadpool(record)
        except AuditError as error:  # it is refused all the same
            log.error("audit_log_failed", action=action, problem=str(error))


def reads(method: str, path: str) -> KeyScope:
    """What only answers needs `read`."""
    return KeyScope.read


def reads_and_changes(method: str, path: str) -> KeyScope:
    """What looks needs `read`, and what changes anything needs `admin`.

    >>> reads_and_changes("GET", "/v1/adapters/home").value, reads_and_changes("PUT", "/v1/adapters/home").value
    ('read', 'admin')
    """
    return KeyScope.read if method in ("GET", "HEAD", "OPTIONS") else KeyScope.admin


def takes_events(method: str, path: str) -> KeyScope:
    """Events need `events`; metrics and documentation need `read`.

    >>> takes_events("POST", "/v1/events").value, takes_events("GET", "/metrics").value
    ('events', 'read')
    """
    return KeyScope.events if path.startswith("/v1/") else KeyScope.read


def _token(header: str) -> str:
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _objection(token: str, key: Key | None, needed: KeyScope) -> KeyReason | None:
    """Why a caller is turned away; None if it is not."""
    if not token:
        return "missing"
    if key is None:
        return "unknown"
    state = key.state(datetime.now(UTC))
    if state != "good":
        return state
    return None if needed in key.scopes else "scope"
