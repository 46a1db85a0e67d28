"""Middleware that refuses callers without a valid API key."""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.audit import AuditError, AuditLog
from services.metrics.access import AccessMetrics, KeyReason
from services.web.access.key_cache import KeyCache
from services.web.access.keys import Key
from services.web.access.scope_rules import OPEN_PATHS, ScopeRule
from services.web.access.scopes import Scope as KeyScope
from services.web.http import problem_response

CHALLENGE = 'Bearer realm="headwater"'

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: name and id of the key, or `nobody` if the process requires no keys.
        address: the IP address of the client.
    """

    name: str
    address: str


def caller_of(request: Request) -> Caller:
    """Return the sender of a request.

    Args:
        request: a request that has passed `ApiKeyMiddleware`, if that is installed.
    """
    name = getattr(request.state, "caller", "nobody")
    return Caller(name=name, address=request.client.host if request.client else "")


class ApiKeyMiddleware:
    """ASGI middleware that requires ``Authorization: Bearer KEY``.

    Args:
        app: the wrapped application.
        keys: the valid keys.
        required_scope: the scope that a call needs.
        metrics: the metrics that count refused callers.
        audit: the log of refused admin calls; None records none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyCache,
        required_scope: ScopeRule,
        metrics: AccessMetrics,
        audit: AuditLog | None = None,
    ) -> None:
        self._app, self._keys, self._required_scope = app, keys, required_scope
        self._metrics, self._audit = metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on if its key allows the call, else answer 401 or 403."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        required = self._required_scope(scope["method"], scope["path"])
        if required is None:
            return await self._app(scope, receive, send)
        token = _bearer_token(Headers(scope=scope).get("authorization", ""))
        key = self._keys.find(token) if token else None
        reason = _refusal_reason(token, key, required)
        if reason is None and key is not None:
            scope.setdefault("state", {})["caller"] = f"{key.name}/{key.id}"
            return await self._app(scope, receive, send)
        await self._refuse(scope, receive, send, key, required, reason or "unknown")

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, key: Key | None, required: KeyScope, reason: KeyReason
    ) -> None:
        self._metrics.key_refused(reason)
        request = Request(scope)
        if key is not None:
            log.warning("key_refused", reason=reason, key=key.id, name=key.name, path=request.url.path)
        if key is not None and required is KeyScope.admin and self._audit is not None:
            await self._record(self._audit, request, key, reason)
        if reason == "scope":
            detail = f"this call needs a key of scope `{required}`; yours has {', '.join(key.scopes if key else ())}"
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{required}"'
            answer = problem_response(request, HTTPStatus.FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
        else:
            # A caller without a valid key does not learn whether the key was valid once.
            detail = f"this call needs a key of scope `{required}`; send `Authorization: Bearer KEY`"
            challenge = CHALLENGE if reason == "missing" else f'{CHALLENGE}, error="invalid_token"'
            answer = problem_response(request, HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
        await answer(scope, receive, send)

    @staticmethod
    async def _record(audit: AuditLog, request: Request, key: Key, reason: str) -> None:
        action, by = f"{request.method} {request.url.path}", f"{key.name}/{key.id}"
        address = request.client.host if request.client else ""

        def record() -> None:
            audit.record(action, "refused", by=by, address=address, reason=reason)

        try:
            await run_in_threadpool(record)
        except AuditError as error:  # the call is refused all the same
            log.error("audit_log_failed", action=action, problem=str(error))


def _bearer_token(header: str) -> str:
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refusal_reason(token: str, key: Key | None, required: KeyScope) -> KeyReason | None:
    """Return the label of the reason to refuse a caller; None if the call is allowed."""
    if not token:
        return "missing"
    if key is None:
        return "unknown"
    state = key.state(datetime.now(UTC))
    if state != "good":
        return state
    return None if required in key.scopes else "scope"
