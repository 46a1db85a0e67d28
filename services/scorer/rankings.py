"""Routes that return lists of items: rank, recommend, batch, similar."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from services.scorer.deployment import Deployment
from services.scorer.dispatcher import Dispatcher
from services.scorer.recommender import ItemUnknownError, ProbabilityUnknownError
from services.scorer.requests import BatchRequest, RankRequest, RecommendRequest, SimilarQuery
from services.scorer.responses import BatchAnswer, CandidateRanking, Ranking, candidate_ranking, ranking
from services.scorer.service import ScoringService
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
    422: "a field breaks its rule; `errors` names the field and the rule",
    503: "no adapter is held yet, or too many requests are in flight; try again after `Retry-After` seconds",
}
NO_PROBABILITY = {409: "`bids` were given, but the adapter has not learnt the probability of what they pay for"}

# Answers of a few milliseconds are computed in the event loop: threads that compute hold one another up.
SHORT_CANDIDATES = 200
SHORT_CATALOGUE = 5_000  # items; finding the best of them takes some 2 ms of processor time

ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, description="an item of the catalogue")]


def add_rankings(app: FastAPI, service: ScoringService, dispatcher: Dispatcher, settings: ScorerSettings) -> None:
    """Add the routes that return lists.

    Args:
        app: the application to extend.
        service: the parts that requests need.
        dispatcher: answers from the arm of the shopper.
        settings: the limits of one request.
    """
    responder = _Responder(service, dispatcher, settings)
    document_limits(app, _limits(settings))

    @app.post("/v1/rank", response_model=CandidateRanking, responses=problems(REFUSALS | NO_PROBABILITY))
    async def rank(request: RankRequest) -> Response:
        """Order given candidates for a shopper and a session.

        Once the adapter has learnt from lists, each item has a `click_probability`, and once it has learnt from
        purchases in lists, a `purchase_probability`: the probability that the item is clicked or bought if it is shown
        in the first place. With `bids` the order is by expected value: bid times the probability of what it pays for.
        """
        return await responder.respond(request)

    @app.post("/v1/recommend", response_model=Ranking, responses=problems(REFUSALS))
    async def recommend(request: RecommendRequest) -> Response:
        """Return the best items of the catalogue for a shopper and a session."""
        return await responder.respond(request)

    @app.post("/v1/batch", response_model=BatchAnswer, responses=problems(REFUSALS | NO_PROBABILITY))
    def batch(request: BatchRequest) -> Response:
        """Answer several calls at once, such as the shelves of a page, from one adapter per scenario and shopper.

        Each request names its `call`, `rank` or `recommend`, beside the fields of that call. If one of them is
        invalid, all are refused.
        """
        require_at_most("requests", len(request.requests), settings.max_batch_requests)
        deployments = {name: service.deployment(name) for name in {call.scenario for call in request.requests}}
        answers = [responder.body(call, deployments[call.scenario]) for call in request.requests]
        return FastJsonResponse({"answers": answers})

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=Ranking,
        responses=problems(
            {**REFUSALS, 404: "the catalogue has no such item, or no adapter of the `scenario` was published"}
        ),
    )
    def similar(item_id: ItemId, query: Annotated[SimilarQuery, Query()]) -> Response:
        """Return the items related to an item.

        They are chosen by `behaviour`: the items that shoppers look at next; or by `likeness`: the items that can
        take its place. The item itself may be blocked, as on a page that is still open; the items returned are not.
        """
        require_at_most("k", query.k, settings.max_k)
        deployment = service.deployment(query.scenario)
        return FastJsonResponse(ranking(dispatcher.dispatch_similar(item_id, query, deployment), deployment.scenario))

    @app.exception_handler(ProbabilityUnknownError)
    async def no_probability(request: Request, error: ProbabilityUnknownError) -> Response:
        return problem_response(request, HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(ItemUnknownError)
    async def no_item(request: Request, error: ItemUnknownError) -> Response:
        return problem_response(request, HTTPStatus.NOT_FOUND, str(error))


class _Responder:
    """Turns ranking requests into response bodies: limits, pseudonyms, dispatch, JSON."""

    def __init__(self, service: ScoringService, dispatcher: Dispatcher, settings: ScorerSettings) -> None:
        self._service, self._dispatcher, self._settings = service, dispatcher, settings

    async def respond(self, request: RankRequest | RecommendRequest) -> Response:
        """Answer in the event loop if the answer is short and needs no store of states, else in a thread."""
        deployment = self._service.deployment(request.scenario)
        if self._service.shoppers.reads_events and _is_short(request, deployment):
            await asyncio.sleep(0)  # lets all waiting requests be counted first, so that excess ones are shed
            return FastJsonResponse(self.body(request, deployment))
        return FastJsonResponse(await run_in_threadpool(self.body, request, deployment))

    def body(self, request: RankRequest | RecommendRequest, deployment: Deployment) -> dict[str, Any]:
        """Return the body of the response to a request.

        Raises:
            ProblemError: the request exceeds a limit.
        """
        self._require_within_limits(request)
        answer = self._dispatcher.dispatch(request.under_pseudonym(self._service.pseudonymise), deployment)
        body = candidate_ranking if isinstance(request, RankRequest) else ranking
        return body(answer, deployment.scenario)

    def _require_within_limits(self, request: RankRequest | RecommendRequest) -> None:
        if isinstance(request, RankRequest):
            require_at_most("candidates", len(request.candidates), self._settings.max_candidates)
            require_at_most("bids", len(request.bids or ()), self._settings.max_candidates)
        else:
            require_at_most("k", request.k, self._settings.max_k)


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


def _is_short(request: RankRequest | RecommendRequest, deployment: Deployment) -> bool:
    """Return whether an answer takes a few milliseconds, less than the way to a thread and back costs."""
    if request.diversity:
        return False
    if isinstance(request, RecommendRequest):
        return max(len(model) for model in deployment.models.values()) <= SHORT_CATALOGUE
    return len(request.candidates) <= SHORT_CANDIDATES and request.query is None


def require_at_most(name: str, requested: int, allowed: int) -> None:
    """Refuse a request that asks for more than a limit.

    Args:
        name: the field of the request.
        requested: the number that was requested.
        allowed: the largest number allowed.

    Raises:
        ProblemError: the limit is exceeded.
    """
    if requested > allowed:
        detail = f"`{name}` must be at most {allowed}, got {requested}; ask in several requests"
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
