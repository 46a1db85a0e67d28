"""The HTTP side of the scorer."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry

from services.metrics.scorer import ScorerMetrics
from services.scorer.dispatcher import Dispatcher
from services.scorer.explain import add_explain
from services.scorer.noop import add_noop
from services.scorer.rankings import add_rankings, served
from services.scorer.search import Search
from services.scorer.search_routes import add_search
from services.scorer.worker import Worker
from services.settings.scorer import ScorerSettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import always_read
from services.web.bodies import BodyRules
from services.web.http import ProblemError, add_problem_handlers, metrics_response
from services.web.problems import problems
from services.web.routes import api_routes


def create_app(
    worker: Worker,
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    series: CollectorRegistry,
    *,
    pseudonymise: Callable[[str], str],
    search: Search | None = None,
    access: AccessRules | None = None,
    name: str = "scorer",
) -> FastAPI:
    """Build the application over a worker.

    Args:
        worker: Holds the model that is served.
        settings: How much one request may ask for.
        metrics: Where requests are counted.
        series: What `/metrics` shows.
        pseudonymise: What becomes of ids of users and sessions in requests.
        search: Answers queries in words; without it there are no calls for them.
        access: Who may call; without it everyone.
        name: Of this worker, as it reports itself.
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
    add_rankings(app, worker, settings, pseudonymise, Dispatcher(worker.answers, metrics.rollouts))
    add_explain(app, worker.answers, served=lambda request: served(worker, request), pseudonymise=pseudonymise)
    add_noop(app, scenario=worker.scenario)
    if search is not None:
        add_search(app, worker, search, settings, pseudonymise)
    _add_health(app, worker, metrics, series, name=name)
    metrics.http.declare(api_routes(app))
    return app


def _few_threads(number: int) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan in which so many answers are made in threads at a time; the others wait in order of arrival.

    With the 40 that are usual, answers that compute take turns with one another, and all of them are late.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = number
        yield

    return lifespan


def _add_health(app: FastAPI, worker: Worker, metrics: ScorerMetrics, series: CollectorRegistry, *, name: str) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process runs, adapter or no adapter."""
        return {"status": "ok"}

    @app.get("/readyz", responses=problems({503: "what is missing; it may be there in a second"}))
    async def readyz() -> dict[str, Any]:
        """Whether a warm adapter is held and the shoppers' states have been read; which, and how stale it is."""
        missing, told = worker.missing(), list(worker.problems().values())
        if missing is not None:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, missing, headers={"Retry-After": "1"}, problems=told)
        manifest = served(worker).manifest
        deployment = worker.answers.deployments[manifest.scenario]
        return {
            "status": "ready",
            "worker": name,
            "scenario": manifest.scenario,
            "adapter_version": manifest.version,
            "published_at_ms": manifest.published_at_ms,
            "watermark_ms": manifest.watermark_ms,
            "problems": told,
            "arms": {arm: model.version for arm, model in deployment.models.items()},
            "rollout_revision": deployment.rollout.revision,
            "rollout_changed_at_ms": deployment.rollout.changed_at_ms,
            "staleness_seconds": max(0.0, time.time() - manifest.published_at_ms / 1000),
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_page() -> Response:
        """The process's metrics."""
        metrics.show_state_users(len(worker.shoppers))
        metrics.show_problems(worker.problems())
        return metrics_response(series)
