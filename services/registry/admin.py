"""The calls that change what is served. Each is told to the audit log before it is made."""

import threading
from collections.abc import Callable
from http import HTTPStatus

from fastapi import BackgroundTasks, FastAPI, Request, Response

from peft_adapters.registry.manifest import check_scenario
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import Verifier
from services.audit import AuditError, AuditLog
from services.registry.answers import CHANGES, ScenarioName, changes_before
from services.registry.changes import (
    PATHS,
    Change,
    EndCanary,
    EndShadow,
    Pin,
    Promote,
    Rollback,
    StartCanary,
    StartShadow,
    Unpin,
    action_of,
    asked,
    make,
)
from services.web.access.key_check import caller_of
from services.web.http import problem_response

ROOT = "/v1/adapters/{scenario}/"


def add_admin(
    app: FastAPI,
    registry: AdapterRegistry,
    *,
    audit: AuditLog,
    announce: Callable[[Rollout], object] | None,
    verify: Verifier | None = None,
) -> None:
    """Add the calls that change rollouts.

    Args:
        app: the registry's application.
        registry: open for writing.
        audit: is told of each call.
        announce: is given each new rollout once it is answered; None tells nobody.
        verify: checks the signatures of versions that are to be served; None checks none.
    """
    one_at_a_time = threading.Lock()  # a store that takes whatever is written knows of no conflict

    def made(request: Request, after: BackgroundTasks, scenario: str, change: Change) -> Rollout:
        caller, details = caller_of(request), {"scenario": check_scenario(scenario), "asked": asked(change)}
        with audit.call(action_of(change), by=caller.name, address=caller.address, **details), one_at_a_time:
            rollout = make(registry, scenario, change, by=caller.name, verify=verify)
        if announce is not None:
            after.add_task(announce, rollout)
        return rollout

    _add_calls(app, made)
    _add_errors(app)


def _add_calls(app: FastAPI, made: Callable[[Request, BackgroundTasks, str, Change], Rollout]) -> None:
    @app.post(ROOT + PATHS[Pin], responses=changes_before(Unpin))
    def pin(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Pin) -> Rollout:
        """Answer all from one version. A canary ends."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[Unpin], responses=CHANGES)
    def unpin(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Unpin) -> Rollout:
        """Follow the latest version again. A canary ends."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[Rollback], responses=changes_before(Unpin))
    def rollback(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Rollback) -> Rollout:
        """Answer all from an earlier version: named, by time (`to`), the stable one of a canary, or the one before."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[StartCanary], responses=changes_before(Promote, EndCanary))
    def canary(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: StartCanary) -> Rollout:
        """Answer some shoppers from another version, and hold the stable one."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[EndCanary], responses=CHANGES)
    def end_canary(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: EndCanary) -> Rollout:
        """Answer all from the stable version."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[StartShadow], responses=changes_before(EndShadow))
    def shadow(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: StartShadow) -> Rollout:
        """Have another version score too, without ever answering."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[EndShadow], responses=CHANGES)
    def end_shadow(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: EndShadow) -> Rollout:
        """Have no other version score."""
        return made(request, after, scenario, change)

    @app.post(ROOT + PATHS[Promote], responses=CHANGES)
    def promote(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Promote) -> Rollout:
        """Answer all from the canary's version, pinned."""
        return made(request, after, scenario, change)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(AuditError)
    async def not_told(request: Request, error: AuditError) -> Response:
        detail = "the audit log cannot be written, so nothing was changed; see the server's log"
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "10"})
