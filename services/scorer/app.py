"""The HTTP application of the scorer."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry

from peft_adapters.registry.rollout import STABLE
from services.metrics.scorer import ScorerMetrics
from services.scorer.dispatcher import Dispatcher
from services.scorer.explain import add_explain
from services.scorer.noop import add_noop
from services.scorer.rankings import add_rankings
from services.scorer.search import Search
from services.scorer.search_routes import add_search
from services.scorer.service import ScoringService
from services.settings.scorer import ScorerSettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import always_read
from services.web.bodies import BodyRules
from services.web.http import ProblemError, add_problem_handlers, metrics_response
from services.web.problems import problems
from services.web.routes import api_routes


def create_app(
    service: ScoringService,
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    series: CollectorRegistry,
    *,
    search: Search | None = None,
    access: AccessRules | None = None,
    name: str = "scorer",
) -> FastAPI:
    """Build the application.

    Args:
        service: the parts that requests need.
        settings: the limits of one request.
        metrics: the metrics of the process.
        series: the registry that `/metrics` shows.
        search: answers queries in words; None leaves its routes out.
        access: who may call; None lets everyone in.
        name: the name of this worker, as it reports itself.
    """
    app = FastAPI(title="Headwater scorer", lifespan=_few_threads(settings.answer_threads))
    install_access_control(
        app,
        access or AccessRules(),
        metrics.access,
        required_scope=always_read,
        request_metrics=metrics.http,
        body_rules=BodyRules(max_bytes=settings.max_body_bytes, remedy="send fewer candidates at a time"),
        cors_origins=settings.cors_origins,
    )
    add_problem_handlers(app)
    add_rankings(app, service, Dispatcher(service.recommender, metrics.rollouts), settings)
    add_explain(app, service)
    add_noop(app, scenario=service.table.scenario)
    if search is not None:
        add_search(app, service, search, settings)
    _add_health(app, service, metrics, series, name=name)
    metrics.http.declare(api_routes(app))
    return app


def _few_threads(number: int) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that limits the threads which answer requests; further requests wait in order of arrival.

    With anyio's default of 40 threads, answers that compute take turns with one another, and all of them are late.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = number
        yield

    return lifespan


def _add_health(
    app: FastAPI, service: ScoringService, metrics: ScorerMetrics, series: CollectorRegistry, *, name: str
) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer as long as the process runs, with or without an adapter."""
        return {"status": "ok"}

    @app.get("/readyz", responses=problems({503: "what is missing; it may be there in a second"}))
    async def readyz() -> dict[str, Any]:
        """Report the adapter that is served and its age, once the worker has one and has read shoppers' states."""
        missing, known_problems = service.health.missing(), list(service.health.problems().values())
        if missing is not None:
            headers = {"Retry-After": "1"}
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, missing, headers=headers, problems=known_problems)
        deployment = service.deployment(None)
        manifest = deployment.models[STABLE].manifest
        return {
            "status": "ready",
            "worker": name,
            "scenario": manifest.scenario,
            "adapter_version": manifest.version,
            "published_at_ms": manifest.published_at_ms,
            "watermark_ms": manifest.watermark_ms,
            "problems": known_problems,
            "arms": {arm: model.version for arm, model in deployment.models.items()},
            "rollout_revision": deployment.rollout.revision,
            "rollout_changed_at_ms": deployment.rollout.changed_at_ms,
            "staleness_seconds": max(0.0, time.time() - manifest.published_at_ms / 1000),
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_page() -> Response:
        """Return the metrics of the process."""
        metrics.show_state_users(len(service.shoppers))
        metrics.show_problems(service.health.problems())
        return metrics_response(series)
