"""The collector's HTTP application."""

import time
from http import HTTPStatus
from typing import Any, Literal

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from services.collector.api_schema import REFUSALS, request_body
from services.collector.forwarder import Forwarder
from services.collector.spool import Spool, SpoolError, SpoolFullError
from services.collector.validation import ValidatedEvent, validate_body
from services.metrics.collector import CollectorMetrics, Outcome
from services.settings.collector import CollectorSettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import events_or_read
from services.web.bodies import BodyRules
from services.web.http import (
    ProblemError,
    add_problem_handlers,
    metrics_response,
    problem_response,
)
from services.web.problems import KEYS, problems
from services.web.routes import api_routes

RETRY_SECONDS = 1  # a spool that is being sent to Kafka has room again soon
RETRY_AWAY_SECONDS = 10

log = structlog.get_logger(__name__)


class EventOutcome(BaseModel):
    """The outcome for one event."""

    status: Literal["accepted", "rejected"]
    event_id: str | None = Field(default=None, description="of an accepted event: its own, or a generated id")
    reason: str | None = Field(default=None, description="of a rejected event: the field and the rule that it breaks")


class Collected(BaseModel):
    """The outcomes for the events of a request, in their order."""

    accepted: int
    rejected: int
    events: list[EventOutcome]


def create_app(
    spool: Spool,
    forwarder: Forwarder,
    settings: CollectorSettings,
    metrics: CollectorMetrics,
    series: CollectorRegistry,
    *,
    access: AccessRules | None = None,
) -> FastAPI:
    """Build the application over a spool.

    Args:
        spool: the queue of accepted events.
        forwarder: sends the spool's events to Kafka.
        settings: the collector's section of the settings, with the limits of a request.
        metrics: the metrics that count requests and events.
        series: the registry of metrics for `/metrics`.
        access: the access rules; None lets everyone in.
    """
    app = FastAPI(title="Headwater collector")
    install_access_control(
        app,
        access or AccessRules(),
        metrics.access,
        required_scope=events_or_read,
        request_metrics=metrics.http,
        body_rules=BodyRules(max_bytes=settings.max_body_bytes, remedy="send fewer events at a time"),
        cors_origins=settings.cors_origins,
        allow_beacons=True,
    )
    add_problem_handlers(app)
    _add_events(app, _EventsHandler(spool, forwarder, settings, metrics), max_events=settings.max_batch_events)
    _add_health(app, spool, forwarder, metrics, series)
    metrics.http.declare(api_routes(app))
    return app


class _EventsHandler:
    """Handler that spools the valid events of a request."""

    def __init__(
        self, spool: Spool, forwarder: Forwarder, settings: CollectorSettings, metrics: CollectorMetrics
    ) -> None:
        self._spool, self._forwarder, self._metrics = spool, forwarder, metrics
        self._max_batch_events = settings.max_batch_events

    def accept(self, body: bytes) -> Collected:
        """Spool the valid events of a body, all of them or, if the spool is full, none."""
        events = validate_body(body, max_events=self._max_batch_events)
        rejected = [event for event in events if event.record is None]
        self._count(rejected, "rejected")
        if len(rejected) == len(events):
            raise _all_rejected(rejected)
        self._spool_events([event for event in events if event.record is not None])
        return Collected(
            accepted=len(events) - len(rejected), rejected=len(rejected), events=[_outcome(event) for event in events]
        )

    def _spool_events(self, accepted: list[ValidatedEvent]) -> None:
        try:
            self._spool.append([event.record for event in accepted if event.record is not None])
        except SpoolFullError as error:
            self._count(accepted, "refused_full")
            raise _full(self._forwarder, f"{error}; no event of this request was taken") from None
        self._count(accepted, "accepted")
        self._forwarder.wake()

    def _count(self, events: list[ValidatedEvent], outcome: Outcome) -> None:
        self._metrics.events_received((event.kind for event in events), outcome)


def _add_events(app: FastAPI, handler: _EventsHandler, *, max_events: int) -> None:
    @app.post(
        "/v1/events",
        status_code=HTTPStatus.ACCEPTED,
        response_model=Collected,
        responses=problems(REFUSALS),
        openapi_extra={"requestBody": request_body(max_events=max_events)},
    )
    async def events(request: Request) -> Response:
        """Accept one event, or a batch `{"events": [...]}`.

        Each event has its kind in `type`, besides the fields of that kind; without `event_id` it gets a random one,
        without `ts` the present time. The answer 202 has an outcome for each event, in order. Accepted events are on
        disk, and are sent to Kafka in order of acceptance, at once or when Kafka is back. An event that is sent again
        with the same `event_id` counts once.
        """
        collected = await run_in_threadpool(handler.accept, await request.body())
        return JSONResponse(collected.model_dump(exclude_none=True), status_code=HTTPStatus.ACCEPTED)

    @app.exception_handler(SpoolError)
    async def spool_failed(request: Request, error: SpoolError) -> Response:
        log.error("spool_failed", path=request.url.path, problem=str(error))
        detail = "the disk takes no events at present, none of this request was taken; try again"
        retry = {"Retry-After": str(RETRY_AWAY_SECONDS)}
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=retry)


def _add_health(
    app: FastAPI, spool: Spool, forwarder: Forwarder, metrics: CollectorMetrics, series: CollectorRegistry
) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process runs, whether or not Kafka answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=problems({503: "the spool is full; `Retry-After` says when to try again"}))
    async def readyz() -> dict[str, Any]:
        """Report whether the spool has room for events, which it has without a broker too until it is full.

        `problems` names what fails at present: a disk that takes no events is tried again with each request.
        """
        disk = await run_in_threadpool(spool.problem)
        away = forwarder.problem is not None and not forwarder.waits_for_disk
        waiting: dict[str, Any] = {
            "broker": "away" if away else "connected",
            "spool_events": len(spool),
            "spool_bytes": spool.size_bytes,
        }
        if disk is not None:
            waiting["problems"] = {"spool": disk}
        if not spool.has_room:
            detail = "the spool is full" + (" and the broker is away" if away else "")
            retry = {"Retry-After": _retry_after(forwarder)}
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=retry, **waiting)
        return {"status": "ready", **waiting}

    @app.get("/metrics", response_class=PlainTextResponse, responses=problems(KEYS))
    def metrics_page() -> Response:
        """Return the process's metrics."""
        oldest_ms = spool.oldest_accepted_ms()
        oldest_seconds = time.time() if oldest_ms is None else oldest_ms / 1000
        metrics.show_spool(events=len(spool), size_bytes=spool.size_bytes, oldest_seconds=oldest_seconds)
        return metrics_response(series)


def _outcome(event: ValidatedEvent) -> EventOutcome:
    status: Literal["accepted", "rejected"] = "rejected" if event.record is None else "accepted"
    return EventOutcome(status=status, event_id=event.event_id, reason=event.reason)


def _all_rejected(rejected: list[ValidatedEvent]) -> ProblemError:
    errors = [{"pointer": event.pointer, "detail": event.reason} for event in rejected]
    more = f"; and {len(rejected) - 1} more" if len(rejected) > 1 else ""
    detail = f"no event is valid: {rejected[0].pointer}: {rejected[0].reason}{more}"
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _full(forwarder: Forwarder, detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": _retry_after(forwarder)})


def _retry_after(forwarder: Forwarder) -> str:
    """Return the seconds after which there may be room again."""
    return str(RETRY_SECONDS if forwarder.problem is None else RETRY_AWAY_SECONDS)
