"""Routes `/v1/search` and `/v1/answer`."""

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from peft_adapters.serving.served_model import ServedModel
from services.scorer.rankings import REFUSALS, require_at_most
from services.scorer.requests import ShopperRequest
from services.scorer.search import Search, SearchHits
from services.scorer.search_requests import AnswerRequest, QuestionAnswer, SearchAnswer, SearchRequest
from services.scorer.service import ScoringService
from services.settings.scorer import ScorerSettings
from services.web.api_limits import document_limits
from services.web.problems import problems


def add_search(app: FastAPI, service: ScoringService, search: Search, settings: ScorerSettings) -> None:
    """Add the routes for queries in words.

    Args:
        app: the application to extend.
        service: the parts that requests need.
        search: finds items and answers.
        settings: the limits of one request.
    """
    k = {"k": {"maximum": settings.max_k}}
    document_limits(app, {"SearchRequest": k, "AnswerRequest": k})

    @app.post("/v1/search", response_model=SearchAnswer, responses=problems(REFUSALS))
    def search_items(request: SearchRequest) -> Response:
        """Find the items that fit a query best, by meaning, by words and by the shopper's own ranking."""
        require_at_most("k", request.k, settings.max_k)
        request = request.under_pseudonym(service.pseudonymise)
        model = service.model_for(request)
        hits = search.search(request, model)
        answer = {**_head(model), "items": _items(hits, model)}
        if not answer["items"]:
            answer["empty_because"] = search.found_nothing_because(request, model)
        return JSONResponse(answer)

    @app.post("/v1/answer", response_model=QuestionAnswer, responses=problems(REFUSALS))
    def answer_question(request: AnswerRequest) -> Response:
        """Find the shop's help answers to a question.

        `known` is false if no answer is likely to answer it; the nearest answers are returned all the same.
        """
        require_at_most("k", request.k, settings.max_k)
        model = service.model_for(ShopperRequest(scenario=request.scenario))
        confidence, hits = search.answer(request, model)
        answers = [
            {"item_id": model.item_ids[row], "text": model.texts[row] or "", "similarity": similarity}
            for row, similarity in zip(hits.rows.tolist(), hits.similarity.tolist(), strict=True)
        ]
        known = bool(answers) and confidence >= search.min_confidence
        return JSONResponse({**_head(model), "known": known, "confidence": confidence, "answers": answers})


def _head(model: ServedModel) -> dict[str, Any]:
    return {"adapter_version": model.version, "scenario": model.manifest.scenario}


def _items(hits: SearchHits, model: ServedModel) -> list[dict[str, Any]]:
    columns = {"item_id": [model.item_ids[row] for row in hits.rows.tolist()]}
    columns |= {"score": hits.scores.tolist(), "similarity": hits.similarity.tolist(), "words": hits.words.tolist()}
    columns |= {f"{outcome}_probability": values.tolist() for outcome, values in hits.probabilities.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
