"""The HTTP side of the collector."""

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
from services.collector.intake import Examined, examine
from services.collector.spool import Spool, SpoolError, SpoolFullError
from services.metrics.collector import CollectorMetrics, Outcome
from services.settings.collector import CollectorSettings
from services.web.access.key_check import takes_events
from services.web.access.wiring import Access, add_access
from services.web.bodies import BodyRules
from services.web.http import (
    ProblemError,
    add_problem_handlers,
    metrics_response,
    problem_response,
)
from services.web.problems import KEYS, problems
from services.web.routes import api_routes

RETRY_SECONDS = 1  # a spool that drains has room again soon
RETRY_AWAY_SECONDS = 10

log = structlog.get_logger(__name__)


class EventOutcome(BaseModel):
    """What became of one event."""

    status: Literal["accepted", "rejected"]
    event_id: str | None = Field(default=None, description="of an accepted event: its own, or the one made up for it")
    reason: str | None = Field(default=None, description="of a rejected one: the field and the rule that it breaks")


class Collected(BaseModel):
    """What became of the events of a request, in their order."""

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
    access: Access | None = None,
) -> FastAPI:
    """Builds the application over a spool.

    Args:
        spool: Where accepted events wait.
        forwarder: Empties it.
        settings: How much one request may carry.
        metrics: Where requests and events are counted.
        series: What `/metrics` shows.
        access: Who may call; without it everyone.
    """
    app = FastAPI(title="Headwater collector")
    add_access(
        app,
        access or Access(),
        metrics.access,
        needs=takes_events,
        requests=metrics.http,
        bodies=BodyRules(max_bytes=settings.max_body_bytes, remedy="send fewer events at a time"),
        cors_origins=settings.cors_origins,
        beacons=True,
    )
    add_problem_handlers(app)
    _add_events(app, _Door(spool, forwarder, settings, metrics), max_events=settings.max_batch_events)
    _add_health(app, spool, forwarder, metrics, series)
    metrics.http.declare(api_routes(app))
    return app


class _Door:
    """Takes the events of a request in, or says why not."""

    def __init__(
        self, spool: Spool, forwarder: Forwarder, settings: CollectorSettings, metrics: CollectorMetrics
    ) -> None:
        self._spool, self._forwarder, self._metrics = spool, forwarder, metrics
        self._max_batch_events = settings.max_batch_events

    def take(self, body: bytes) -> Collected:
        """Spools what is acceptable: all of it or, when there is no room, nothing."""
        examined = examine(body, max_events=self._max_batch_events)
        rejected = [event for event in examined if event.spooled is None]
        self._count(rejected, "rejected")
        if len(rejected) == len(examined):
            raise _nothing_acceptable(rejected)
        self._put([event for event in examined if event.spooled is not None])
        return Collected(
            accepted=len(examined) - len(rejected), rejected=len(rejected), events=[_outcome(e) for e in examined]
        )

    def _put(self, accepted: list[Examined]) -> None:
        try:
            self._spool.put([event.spooled for event in accepted if event.spooled is not None])
        except SpoolFullError as error:
            self._count(accepted, "refused_full")
            raise _full(self._forwarder, f"{error}; no event of this request was taken") from None
        self._count(accepted, "accepted")
        self._forwarder.wake()

    def _count(self, events: list[Examined], outcome: Outcome) -> None:
        self._metrics.events_received((event.kind for event in events), outcome)


def _add_events(app: FastAPI, access: _Door, *, max_events: int) -> None:
    @app.post(
        "/v1/events",
        status_code=HTTPStatus.ACCEPTED,
        response_model=Collected,
        responses=problems(REFUSALS),
        openapi_extra={"requestBody": request_body(max_events=max_events)},
    )
    async def events(request: Request) -> Response:
        """Take one event, or a batch `{"events": [...]}`.

        Each event says its `type` beside the fields of its kind; without `event_id` it gets a random one, without `ts`
        the present time. 202 answers for each event, in order. What was accepted is on disk, and goes to Kafka in the
        order of acceptance, now or when it is back. Send an event again with the same `event_id` and it counts once.
        """
        collected = await run_in_threadpool(access.take, await request.body())
        return JSONResponse(collected.model_dump(exclude_none=True), status_code=HTTPStatus.ACCEPTED)

    @app.exception_handler(SpoolError)
    async def disk(request: Request, error: SpoolError) -> Response:
        log.error("spool_failed", path=request.url.path, problem=str(error))
        detail = "the disk takes no events at present, none of this request was taken; try again"
        retry = {"Retry-After": str(RETRY_AWAY_SECONDS)}
        return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=retry)


def _add_health(
    app: FastAPI, spool: Spool, forwarder: Forwarder, metrics: CollectorMetrics, series: CollectorRegistry
) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process runs, Kafka or no Kafka."""
        return {"status": "ok"}

    @app.get("/readyz", responses=problems({503: "the spool is full; `Retry-After` says when to look again"}))
    async def readyz() -> dict[str, Any]:
        """Whether there is room for events; with the broker away there is, until the spool is full.

        `problems` names what does not work at present: a disk that takes no events is tried again with each request.
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
        """The process's metrics."""
        oldest_ms = spool.oldest_accepted_ms()
        oldest_seconds = time.time() if oldest_ms is None else oldest_ms / 1000
        metrics.show_spool(events=len(spool), size_bytes=spool.size_bytes, oldest_seconds=oldest_seconds)
        return metrics_response(series)


def _outcome(examined: Examined) -> EventOutcome:
    status: Literal["accepted", "rejected"] = "rejected" if examined.spooled is None else "accepted"
    return EventOutcome(status=status, event_id=examined.event_id, reason=examined.reason)


def _nothing_acceptable(rejected: list[Examined]) -> ProblemError:
    errors = [{"pointer": event.pointer, "detail": event.reason} for event in rejected]
    more = f"; and {len(rejected) - 1} more" if len(rejected) > 1 else ""
    detail = f"no event is acceptable: {rejected[0].pointer}: {rejected[0].reason}{more}"
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _full(forwarder: Forwarder, detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": _retry_after(forwarder)})


def _retry_after(forwarder: Forwarder) -> str:
    """Seconds after which there may be room again."""
    return str(RETRY_SECONDS if forwarder.problem is None else RETRY_AWAY_SECONDS)
