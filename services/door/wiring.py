"""Puts the door before an application: one line in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import FastAPI

from services.audit import AuditLog
from services.door.bodies import BodyReader, BodyRules
from services.door.content_types import json_route
from services.door.cors import allow_origins
from services.door.guard import OPEN_PATHS, KeyGuard, KeyRing, Needs
from services.door.head import HeadAsGet
from services.door.limits import RequestLimits
from services.door.openapi import state_keys
from services.door.settings import LimitSettings, SecuritySettings
from services.http import RequestMeter
from services.metrics import DoorMetrics, RequestMetrics
from services.serving import Listening

UNBOUND_PATHS = OPEN_PATHS | {"/metrics"}  # an overloaded process must still be able to say so


@dataclass(frozen=True, kw_only=True)
class Door:
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
    def of(cls, limits: LimitSettings, security: SecuritySettings) -> Door:
        """The door that settings describe.

        Args:
            limits: How many at once, how long.
            security: Who.
        """
        return cls(limits=limits, security=security, audit=AuditLog(security.audit_log))


def add_door(
    app: FastAPI,
    door: Door,
    metrics: DoorMetrics,
    *,
    needs: Needs,
    waits: Callable[[str], bool] = lambda path: False,
    requests: RequestMetrics | None = None,
    bodies: BodyRules | None = None,
    cors_origins: tuple[str, ...] = (),
    beacons: bool = False,
) -> None:
    """Lets nobody into an application but through a door, and has it listened for as the door says.

    Call it before routes are added. A request passes these layers in order: CORS, HEAD as GET, the request metrics,
    keys, the body, a place among those being answered, and the content type.

    Args:
        app: The application.
        door: Who, how many, how long.
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
    app.state.listening = Listening(limits=door.limits, security=door.security, metrics=metrics)
    if bodies is not None:
        app.router.route_class = json_route(beacon_origins=cors_origins if beacons else None)
    app.add_middleware(
        RequestLimits,
        limits=door.limits,
        metrics=metrics,
        bodies=BodyReader(bodies or BodyRules(), door.limits, metrics),
        exempt=lambda path: path in UNBOUND_PATHS or waits(path),
    )
    if door.security.keys_file is not None:
        ring = KeyRing(door.security.keys_file, metrics)
        state_keys(app, needs)
        app.add_middleware(KeyGuard, ring=ring, needs=needs, metrics=metrics, audit=door.audit)
    if requests is not None:
        app.add_middleware(RequestMeter, metrics=requests)
    app.add_middleware(HeadAsGet)
    allow_origins(app, cors_origins)
