"""HTTP calls that change the rollout. Each is recorded in the audit log before it is made."""

import threading
from collections.abc import Callable
from http import HTTPStatus

from fastapi import BackgroundTasks, FastAPI, Request, Response

from peft_adapters.registry.manifest import check_scenario
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import Verifier
from services.audit import AuditError, AuditLog
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
    action_name,
    apply_change,
    request_body,
)
from services.registry.openapi import CHANGES, ScenarioName, changes_before
from services.web.access.api_key_middleware import caller_of
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
        registry: the registry, open for writing.
        audit: the log that records each call.
        announce: is called with each new rollout after the answer; None announces nothing.
        verify: checks the signatures of versions that are to be served; None checks none.
    """
    lock = threading.Lock()  # a store that accepts every write detects no conflict

    def change_rollout(request: Request, after: BackgroundTasks, scenario: str, change: Change) -> Rollout:
        caller, details = caller_of(request), {"scenario": check_scenario(scenario), "asked": request_body(change)}
        with audit.call(action_name(change), by=caller.name, address=caller.address, **details), lock:
            rollout = apply_change(registry, scenario, change, by=caller.name, verify=verify)
        if announce is not None:
            after.add_task(announce, rollout)
        return rollout

    _add_calls(app, change_rollout)
    _add_errors(app)


def _add_calls(app: FastAPI, change_rollout: Callable[[Request, BackgroundTasks, str, Change], Rollout]) -> None:
    @app.post(ROOT + PATHS[Pin], responses=changes_before(Unpin))
    def pin(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Pin) -> Rollout:
        """Serve one version to all shoppers. A canary ends."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[Unpin], responses=CHANGES)
    def unpin(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Unpin) -> Rollout:
        """Serve the latest version again. A canary ends."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[Rollback], responses=changes_before(Unpin))
    def rollback(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Rollback) -> Rollout:
        """Serve an earlier version: by number, by time (`to`), the stable one of a canary, or the one before."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[StartCanary], responses=changes_before(Promote, EndCanary))
    def canary(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: StartCanary) -> Rollout:
        """Serve another version to some shoppers, and pin the stable one."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[EndCanary], responses=CHANGES)
    def end_canary(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: EndCanary) -> Rollout:
        """End the canary: serve the stable version to all shoppers."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[StartShadow], responses=changes_before(EndShadow))
    def shadow(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: StartShadow) -> Rollout:
        """Score requests with another version as well; its scores are never answered."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[EndShadow], responses=CHANGES)
    def end_shadow(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: EndShadow) -> Rollout:
        """End the shadow version."""
        return change_rollout(request, after, scenario, change)

    @app.post(ROOT + PATHS[Promote], responses=CHANGES)
    def promote(request: Request, after: BackgroundTasks, scenario: ScenarioName, change: Promote) -> Rollout:
        """Serve the canary's version to all shoppers, pinned."""
        return change_rollout(request, after, scenario, change)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(AuditError)
    async def not_recorded(request: Request, error: AuditError) -> Response:
        detail = "the audit log cannot be written, so nothing was changed; see the server's log"
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "10"})
