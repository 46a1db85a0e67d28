"""Installation of access control, limits and body rules in an application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import FastAPI

from services.audit import AuditLog
from services.metrics.access import AccessMetrics
from services.metrics.requests import RequestMetrics
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.api_key_middleware import ApiKeyMiddleware
from services.web.access.key_cache import KeyCache
from services.web.access.openapi import document_keys
from services.web.access.scope_rules import OPEN_PATHS, ScopeRule
from services.web.bodies import BodyReader, BodyRules
from services.web.content_types import json_route
from services.web.cors import allow_origins
from services.web.head import HeadMiddleware
from services.web.http import RequestMetricsMiddleware
from services.web.limits import RequestLimitMiddleware
from services.web.server import ServerOptions

UNLIMITED_PATHS = OPEN_PATHS | {"/metrics"}  # an overloaded process must still be able to report that it is


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """Limits, keys and audit log of one process.

    Attributes:
        limits: the most requests at a time, and the time that clients may take.
        security: the keys file, the TLS certificate and the audit log.
        audit: the log that records admin calls.
    """

    limits: LimitSettings = field(default_factory=LimitSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    audit: AuditLog = field(default_factory=AuditLog)

    @classmethod
    def from_settings(cls, limits: LimitSettings, security: SecuritySettings) -> AccessRules:
        """Return the access rules that settings describe.

        Args:
            limits: the section `limits` of the settings.
            security: the section `security` of the settings.
        """
        return cls(limits=limits, security=security, audit=AuditLog(security.audit_log))


def install_access_control(
    app: FastAPI,
    access: AccessRules,
    metrics: AccessMetrics,
    *,
    required_scope: ScopeRule,
    is_long_poll: Callable[[str], bool] = lambda path: False,
    request_metrics: RequestMetrics | None = None,
    body_rules: BodyRules | None = None,
    cors_origins: tuple[str, ...] = (),
    allow_beacons: bool = False,
) -> None:
    """Install access control, request limits and body rules in an application.

    Call it before routes are added. A request passes these layers in order: CORS, HEAD as GET, the request metrics,
    keys, the body, the limit of concurrent requests, and the content type.

    Args:
        app: the FastAPI application.
        access: the limits, keys and audit log of the process.
        metrics: the metrics that count refused callers.
        required_scope: the scope that a call needs, by method and path.
        is_long_poll: a test of a path for long polls, which have limits of neither number nor time.
        request_metrics: the metrics that count and time requests by route; None counts none.
        body_rules: limits of bodies, which must then be JSON; None sets default limits and allows any content type.
        cors_origins: origins of pages whose scripts may call.
        allow_beacons: whether `text/plain`, which `navigator.sendBeacon` sends, is read as JSON.

    Raises:
        KeysError: the keys file cannot be used.
    """
    app.state.server_options = ServerOptions(limits=access.limits, security=access.security, metrics=metrics)
    if body_rules is not None:
        app.router.route_class = json_route(beacon_origins=cors_origins if allow_beacons else None)
    app.add_middleware(
        RequestLimitMiddleware,
        limits=access.limits,
        metrics=metrics,
        bodies=BodyReader(body_rules or BodyRules(), access.limits, metrics),
        exempt=lambda path: path in UNLIMITED_PATHS or is_long_poll(path),
    )
    if access.security.keys_file is not None:
        keys = KeyCache(access.security.keys_file, metrics)
        document_keys(app, required_scope)
        app.add_middleware(
            ApiKeyMiddleware, keys=keys, required_scope=required_scope, metrics=metrics, audit=access.audit
        )
    if request_metrics is not None:
        app.add_middleware(RequestMetricsMiddleware, metrics=request_metrics)
    app.add_middleware(HeadMiddleware)
    allow_origins(app, cors_origins)
