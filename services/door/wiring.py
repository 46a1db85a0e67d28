"""Puts the door before an application: one line in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import FastAPI

from services.audit import AuditLog
from services.door.guard import OPEN_PATHS, KeyGuard, KeyRing, Needs
from services.door.limits import RequestLimits
from services.door.openapi import state_keys
from services.door.settings import LimitSettings, SecuritySettings
from services.metrics import DoorMetrics
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
) -> None:
    """Lets nobody into an application but through a door, and has it listened for as the door says.

    Middleware that is added later goes before it.

    Args:
        app: The application.
        door: Who, how many, how long.
        metrics: Where those are counted that were turned away.
        needs: The scope that a call needs, by method and path.
        waits: Says of a path that to wait is what it is for: a long poll is bound to neither number nor time.

    Raises:
        KeysError: The keys file cannot be used.
    """
    app.state.listening = Listening(limits=door.limits, security=door.security, metrics=metrics)
    app.add_middleware(
        RequestLimits, limits=door.limits, metrics=metrics, exempt=lambda path: path in UNBOUND_PATHS or waits(path)
    )
    if door.security.keys_file is not None:
        ring = KeyRing(door.security.keys_file, metrics)
        state_keys(app, needs)
        app.add_middleware(KeyGuard, ring=ring, needs=needs, metrics=metrics, audit=door.audit)
