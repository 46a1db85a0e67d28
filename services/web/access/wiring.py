"""Install access control in an application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import FastAPI

from services.audit import AuditLog
from services.metrics.access import AccessMetrics
from services.metrics.requests import RequestMetrics
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.key_check import OPEN_PATHS, KeyGuard, KeyRing, Needs
from services.web.access.openapi import state_keys
from services.web.bodies import BodyReader, BodyRules
from services.web.content_types import json_route
from services.web.cors import allow_origins
from services.web.head import HeadAsGet
from services.web.http import RequestMeter
from services.web.limits import RequestLimits
from services.web.server import Listening

UNBOUND_PATHS = OPEN_PATHS | {"/metrics"}  # an overloaded process must still be able to say so


@dataclass(frozen=True, kw_only=True)
class Access:
    """How an application is to be entered.

    Attributes:
        limits: How many at once, how long.
        security: Who.
        audit: Is told of admin calls.
    """

    limits: LimitSettings = field(default_factory=LimitSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    audit: AuditLog = field(default_factory=AuditLog)

    @classmethod
    def of(cls, limits: LimitSettings, security: SecuritySettings) -> Access:
        """Return the access rules that settings describe.

        Args:
            limits: How many at once, how long.
            security: Who.
        """
        return cls(limits=limits, security=security, audit=AuditLog(security.audit_log))


def add_access(
    app: FastAPI,
    access: Access,
    metrics: AccessMetrics,
    *,
    needs: Needs,
    waits: Callable[[str], bool] = lambda path: False,
    requests: RequestMetrics | None = None,
    bodies: BodyRules | None = None,
    cors_origins: tuple[str, ...] = (),
    beacons: bool = False,
) -> None:
    """Install access control, request limits and body rules in an application.

    Call it before routes are added. A request passes these layers in order: CORS, HEAD as GET, the request metrics,
    keys, the body, a place among those being answered, and the content type.

    Args:
        app: The application.
        access: Who, how many, how long.
        metrics: Where those are counted that were turned away.
        needs: The scope that a call needs, by method and path.
        waits: Says of a path that to wait is what it is for: a long poll is bound to neither number nor time.
        requests: Counts and times requests by route; None counts none.
        bodies: Limits to bodies, which must be JSON; None takes the default limits and any content type.
        cors_origins: Origins of pages whose scripts may call.
        beacons: Whether `text/plain`, which `navigator.sendBeacon` sends, is taken for JSON.

    Raises:
        KeysError: The keys file cannot be used.
    """
    app.state.listening = Listening(limits=access.limits, security=access.security, metrics=metrics)
    if bodies is not None:
        app.router.route_class = json_route(beacon_origins=cors_origins if beacons else None)
    app.add_middleware(
        RequestLimits,
        limits=access.limits,
        metrics=metrics,
        bodies=BodyReader(bodies or BodyRules(), access.limits, metrics),
        exempt=lambda path: path in UNBOUND_PATHS or waits(path),
    )
    if access.security.keys_file is not None:
        ring = KeyRing(access.security.keys_file, metrics)
        state_keys(app, needs)
        app.add_middleware(KeyGuard, ring=ring, needs=needs, metrics=metrics, audit=access.audit)
    if requests is not None:
        app.add_middleware(RequestMeter, metrics=requests)
    app.add_middleware(HeadAsGet)
    allow_origins(app, cors_origins)
