"""`/v1/search` and `/v1/answer`."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from peft_adapters.serving.served_model import ServedModel
from services.scorer.rankings import REFUSALS, require_at_most, served
from services.scorer.requests import ShopperRequest
from services.scorer.search import Found, Search
from services.scorer.search_requests import Answered, AnswerRequest, SearchAnswer, SearchRequest
from services.scorer.worker import Worker
from services.settings.scorer import ScorerSettings
from services.web.api_limits import document_limits
from services.web.problems import problems


def add_search(
    app: FastAPI, worker: Worker, search: Search, settings: ScorerSettings, pseudonymise: Callable[[str], str]
) -> None:
    """Adds the calls in words.

    Args:
        app: The application.
        worker: Holds the model that is served.
        search: Answers.
        settings: How much one request may ask for.
        pseudonymise: What becomes of ids of users and sessions in requests.
    """
    k = {"k": {"maximum": settings.max_k}}
    document_limits(app, {"SearchRequest": k, "AnswerRequest": k})

    @app.post("/v1/search", response_model=SearchAnswer, responses=problems(REFUSALS))
    def search_items(request: SearchRequest) -> Response:
        """The items that fit a query best: by meaning and by words, then in the order of the shopper who asks."""
        require_at_most("k", request.k, settings.max_k)
        request = request.under_pseudonym(pseudonymise)
        model = served(worker, request)
        found = search.search(request, model)
        return JSONResponse({**_head(model), "items": _items(found, model)})

    @app.post("/v1/answer", response_model=Answered, responses=problems(REFUSALS))
    def answer_question(request: AnswerRequest) -> Response:
        """What the shop's help answers say to a question, or that they say nothing to it.

        `known` is false where no answer is likely to be one; what comes nearest is told all the same.
        """
        require_at_most("k", request.k, settings.max_k)
        model = served(worker, ShopperRequest(scenario=request.scenario))
        sure, found = search.answer(request, model)
        answers = [
            {"item_id": model.item_ids[row], "text": model.texts[row] or "", "similarity": similarity}
            for row, similarity in zip(found.rows.tolist(), found.similarity.tolist(), strict=True)
        ]
        known = bool(answers) and sure >= search.min_confidence
        return JSONResponse({**_head(model), "known": known, "confidence": sure, "answers": answers})


def _head(model: ServedModel) -> dict[str, Any]:
    return {"adapter_version": model.version, "scenario": model.manifest.scenario}


def _items(found: Found, model: ServedModel) -> list[dict[str, Any]]:
    columns = {"item_id": [model.item_ids[row] for row in found.rows.tolist()]}
    columns |= {"score": found.scores.tolist(), "similarity": found.similarity.tolist(), "words": found.words.tolist()}
    columns |= {f"{outcome}_probability": values.tolist() for outcome, values in found.probabilities.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
