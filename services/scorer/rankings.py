"""The calls that give lists of items: rank, recommend, several of both at once, and what is related to an item."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from peft_adapters.registry.rollout import STABLE
from peft_adapters.serving.served_model import ServedModel
from services.scorer.answers import ItemUnknownError, ProbabilityUnknownError
from services.scorer.deployment import Deployment
from services.scorer.dispatcher import Dispatcher
from services.scorer.requests import BatchRequest, RankRequest, RecommendRequest, ShopperRequest, SimilarQuery
from services.scorer.responses import BatchAnswer, CandidateRanking, Ranking, candidate_ranking, ranking
from services.scorer.worker import Worker
from services.settings.scorer import ScorerSettings
from services.web.api_limits import Limits, document_limits
from services.web.http import ProblemError, problem_response
from services.web.json_response import FastJsonResponse
from services.web.problems import problems
from streams.events import MAX_ID_CHARS

REFUSALS = {
    400: "not JSON, not text, or gzip that is damaged or cut off",
    404: "no adapter of the `scenario` was published",
    408: "the body did not arrive in time",
    413: "the body, as sent or unpacked, is larger than `max_body_bytes`",
    415: "the `Content-Type` is not application/json, or the `Content-Encoding` is not gzip",
    422: "a field breaks its rule; `errors` says which, and the rule",
    503: "no adapter is held yet, or too much is asked at once; try again after `Retry-After` seconds",
}
NO_PROBABILITY = {409: "`bids` were given, and how likely it is that they are paid was not learnt yet"}

# What takes a few milliseconds is answered in the loop itself: threads that compute hold one another up.
SHORT_CANDIDATES = 200
SHORT_CATALOGUE = 5_000  # items, of which the best are found in some 2 ms of processor time

ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, description="an item of the catalogue")]


def add_rankings(
    app: FastAPI, worker: Worker, settings: ScorerSettings, pseudonymise: Callable[[str], str], turns: Dispatcher
) -> None:
    """Adds the calls that give lists.

    Args:
        app: The application.
        worker: Holds the model that is served.
        settings: How much one request may ask for.
        pseudonymise: What becomes of ids of users and sessions in requests.
        turns: Answers from the arm whose turn it is.
    """
    calls = _Calls(worker, settings, pseudonymise, turns)
    document_limits(app, _limits(settings))

    @app.post("/v1/rank", response_model=CandidateRanking, responses=problems(REFUSALS | NO_PROBABILITY))
    async def rank(request: RankRequest) -> Response:
        """Order given candidates for a shopper and a session.

        Once lists were learnt, each item comes with its `click_probability`, and once purchases in lists were, with its
        `purchase_probability`: that it is clicked or bought if it is shown in the first place. With `bids` the order is
        by expected value: bid times the probability of what it is paid for.
        """
        return await calls.answered(request)

    @app.post("/v1/recommend", response_model=Ranking, responses=problems(REFUSALS))
    async def recommend(request: RecommendRequest) -> Response:
        """The best of the catalogue for a shopper and a session."""
        return await calls.answered(request)

    @app.post("/v1/batch", response_model=BatchAnswer, responses=problems(REFUSALS | NO_PROBABILITY))
    def batch(request: BatchRequest) -> Response:
        """Several calls at once, such as the shelves of a page; a shopper's are answered by one adapter a scenario.

        Each request says its `call`, `rank` or `recommend`, beside the fields of that call. One that is wrong has all
        of them refused.
        """
        require_at_most("requests", len(request.requests), settings.max_batch_requests)
        deployments = {asked: deployment_for(worker, asked) for asked in {one.scenario for one in request.requests}}
        return FastJsonResponse({"answers": [calls.one(one, deployments[one.scenario]) for one in request.requests]})

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=Ranking,
        responses=problems(
            {**REFUSALS, 404: "the catalogue has no such item, or no adapter of the `scenario` was published"}
        ),
    )
    def similar(item_id: ItemId, query: Annotated[SimilarQuery, Query()]) -> Response:
        """What is related to an item.

        Items come by `behaviour`, as what shoppers go on to who look at it, or by `likeness`, as what takes its place.
        The item may be blocked itself, as that of a page that is still open; what is related to it is not.
        """
        require_at_most("k", query.k, settings.max_k)
        deployment = deployment_for(worker, query.scenario)
        return FastJsonResponse(ranking(turns.similar(item_id, query, deployment), deployment.scenario))

    @app.exception_handler(ProbabilityUnknownError)
    async def no_probability(request: Request, error: ProbabilityUnknownError) -> Response:
        return problem_response(request, HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(ItemUnknownError)
    async def no_item(request: Request, error: ItemUnknownError) -> Response:
        return problem_response(request, HTTPStatus.NOT_FOUND, str(error))


class _Calls:
    """One request to its answer, alone or among others."""

    def __init__(
        self, worker: Worker, settings: ScorerSettings, pseudonymise: Callable[[str], str], turns: Dispatcher
    ) -> None:
        self._worker, self._settings, self._pseudonymise, self._turns = worker, settings, pseudonymise, turns

    async def answered(self, request: RankRequest | RecommendRequest) -> Response:
        """One request alone: in the loop where it is short and asks nobody else for the shopper, else in a thread."""
        deployment = deployment_for(self._worker, request.scenario)
        if self._worker.shoppers.reads_events and _is_short(request, deployment):
            await asyncio.sleep(0)  # all who ask now are counted before one is answered: too many are turned away
            return FastJsonResponse(self.one(request, deployment))
        return FastJsonResponse(await run_in_threadpool(self.one, request, deployment))

    def one(self, request: RankRequest | RecommendRequest, deployment: Deployment) -> dict[str, Any]:
        """Whichever of the two it is."""
        return (
            self.rank(request, deployment) if isinstance(request, RankRequest) else self.recommend(request, deployment)
        )

    def rank(self, request: RankRequest, deployment: Deployment) -> dict[str, Any]:
        require_at_most("candidates", len(request.candidates), self._settings.max_candidates)
        require_at_most("bids", len(request.bids or ()), self._settings.max_candidates)
        answer = self._turns.rank(request.under_pseudonym(self._pseudonymise), deployment)
        return candidate_ranking(answer, deployment.scenario)

    def recommend(self, request: RecommendRequest, deployment: Deployment) -> dict[str, Any]:
        require_at_most("k", request.k, self._settings.max_k)
        answer = self._turns.recommend(request.under_pseudonym(self._pseudonymise), deployment)
        return ranking(answer, deployment.scenario)


def _limits(settings: ScorerSettings) -> Limits:
    candidates = {
        "candidates": {"maxItems": settings.max_candidates},
        "bids": {"maxProperties": settings.max_candidates},
    }
    k = {"k": {"maximum": settings.max_k}}
    return {
        "RankRequest": candidates,
        "RankCall": candidates,
        "RecommendRequest": k,
        "RecommendCall": k,
        "BatchRequest": {"requests": {"maxItems": settings.max_batch_requests}},
        "/v1/items/{item_id}/similar": k,
    }


def served(worker: Worker, request: ShopperRequest | None = None) -> ServedModel:
    """The model that answers a request.

    Args:
        worker: Holds the models.
        request: Under pseudonyms; None asks for the stable one of the worker's own scenario.

    Raises:
        ProblemError: There is none yet.
    """
    deployment = deployment_for(worker, request.scenario if request else None)
    arm = deployment.arm_of(request.user_id or request.session_id) if request else STABLE
    return deployment.models[arm]


def deployment_for(worker: Worker, scenario: str | None) -> Deployment:
    """What is served of a scenario, with a stable model.

    Args:
        worker: Holds the models.
        scenario: Which; None is the worker's own.

    Raises:
        ProblemError: It is not held yet, or nothing is published under its name.
    """
    name = scenario or worker.scenario
    may_come = worker.answers.ask(name)
    deployment = worker.answers.deployments.get(name)
    if deployment is not None and deployment.stable is not None:
        return deployment
    if name == worker.scenario:
        detail = worker.missing() or "no adapter is held yet"
    elif may_come:
        detail = f"scenario {name!r} is being loaded; ask again"
    else:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"no adapter of scenario {name!r} has been published")
    raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})


def _is_short(request: RankRequest | RecommendRequest, deployment: Deployment) -> bool:
    """Whether an answer takes a few milliseconds: less than handing it to a thread and back is worth."""
    if request.diversity:
        return False
    if isinstance(request, RecommendRequest):
        return max(len(model) for model in deployment.models.values()) <= SHORT_CATALOGUE
    return len(request.candidates) <= SHORT_CANDIDATES and request.query is None


def require_at_most(name: str, asked: int, allowed: int) -> None:
    """Refuses a request that asks for too much.

    Raises:
        ProblemError: It does.
    """
    if asked > allowed:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"`{name}` must be at most {allowed}, got {asked}; ask in several requests"
        )
