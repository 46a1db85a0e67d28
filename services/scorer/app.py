"""The HTTP side of the scorer."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from peft_adapters.serving import ServedModel
from services.http import BodyLimit, ProblemError, RequestMeter, add_problem_handlers, metrics_response
from services.metrics import ScorerMetrics
from services.scorer.answers import Answer
from services.scorer.explain import add_explain
from services.scorer.requests import RankRequest, RecommendRequest
from services.scorer.settings import ScorerSettings
from services.scorer.worker import Worker


def create_app(
    worker: Worker,
    settings: ScorerSettings,
    metrics: ScorerMetrics,
    series: CollectorRegistry,
    *,
    pseudonymise: Callable[[str], str],
) -> FastAPI:
    """Build the application over a worker.

    Args:
        worker: Holds the model that is served.
        settings: How much one request may ask for.
        metrics: Where requests are counted.
        series: What `/metrics` shows.
        pseudonymise: What becomes of ids of users and sessions in requests.
    """
    app = FastAPI(title="Headwater scorer")
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, remedy="send fewer candidates at a time")
    app.add_middleware(RequestMeter, metrics=metrics.http)
    add_problem_handlers(app)
    _add_rankings(app, worker, settings, pseudonymise)
    add_explain(
        app, worker.answers, scenario=worker.scenario, served=lambda: _served(worker), pseudonymise=pseudonymise
    )
    _add_health(app, worker, metrics, series)
    return app


def _add_rankings(app: FastAPI, worker: Worker, settings: ScorerSettings, pseudonymise: Callable[[str], str]) -> None:
    answers = worker.answers

    @app.post("/v1/rank")
    def rank(request: RankRequest) -> Response:
        """Order given candidates for a shopper and a session.

        Once lists were learnt, each item comes with its `click_probability`, and once purchases in lists were, with its
        `purchase_probability`: that it is clicked or bought if it is shown in the first place.
        """
        _require_at_most("candidates", len(request.candidates), settings.max_candidates)
        request = request.under_pseudonym(pseudonymise)
        answer = answers.rank(request, _served(worker))
        answers.remember(request)
        return JSONResponse({**_body(answer, worker.scenario), "unknown_candidates": answer.unknown})

    @app.post("/v1/recommend")
    def recommend(request: RecommendRequest) -> Response:
        """The best of the catalogue for a shopper and a session."""
        _require_at_most("k", request.k, settings.max_k)
        request = request.under_pseudonym(pseudonymise)
        answer = answers.recommend(request, _served(worker))
        answers.remember(request)
        return JSONResponse(_body(answer, worker.scenario))


def _add_health(app: FastAPI, worker: Worker, metrics: ScorerMetrics, series: CollectorRegistry) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process runs, adapter or no adapter."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Whether a warm adapter is held and the shoppers' states have been read; which, and how stale it is."""
        missing = worker.missing()
        if missing is not None:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, missing, headers={"Retry-After": "1"})
        manifest = _served(worker).manifest
        return {
            "status": "ready",
            "scenario": manifest.scenario,
            "adapter_version": manifest.version,
            "published_at_ms": manifest.published_at_ms,
            "watermark_ms": manifest.watermark_ms,
            "problems": [problem for problem in (worker.shoppers.problem(),) if problem is not None],
            "staleness_seconds": max(0.0, time.time() - manifest.published_at_ms / 1000),
        }

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """The process's metrics."""
        metrics.state_users.set(len(worker.shoppers))
        return metrics_response(series)


def _served(worker: Worker) -> ServedModel:
    model = worker.answers.model
    if model is None:
        detail = worker.missing() or "no adapter is held yet"
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})
    return model


def _require_at_most(name: str, asked: int, allowed: int) -> None:
    if asked > allowed:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"`{name}` must be at most {allowed}, got {asked}; ask in several requests"
        )


def _body(answer: Answer, scenario: str) -> dict[str, Any]:
    columns = {"item_id": answer.item_ids, "score": answer.scores}
    columns |= {f"{outcome}_probability": values for outcome, values in answer.probabilities.items()}
    items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"adapter_version": answer.adapter_version, "scenario": scenario, "items": items}
