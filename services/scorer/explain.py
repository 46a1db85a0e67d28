"""Route `/v1/explain`: the contributions that make up the scores of given candidates."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from peft_adapters.serving.explanations import Explanation, explain
from peft_adapters.serving.served_model import ServedModel
from services.scorer.rankings import NO_PROBABILITY, REFUSALS
from services.scorer.recommender import Recommender
from services.scorer.requests import RankRequest
from services.scorer.sentences import because
from services.scorer.service import ScoringService
from services.web.json_types import NUMBER_ONLY
from services.web.problems import problems
from streams.events import Id

MAX_EXPLAINED = 50
MAX_HISTORY = 128

_Share = Annotated[float, Field(description="the part that it adds to the score; negative parts lower the score")]


class ExplainRequest(RankRequest):
    """A request to explain the scores of candidates.

    Attributes:
        history: the number of items of the shopper's history to list one by one, largest contribution first.
    """

    candidates: tuple[Id, ...] = Field(min_length=1, max_length=MAX_EXPLAINED)
    history: Annotated[int, Field(ge=0, le=MAX_HISTORY), NUMBER_ONLY] = 20


class ScoreByKind(BaseModel):
    """A score, or a part of one, by kind of evidence; the parts add up to it.

    Attributes:
        popularity: from how often the item is bought, clicked and shown.
        cooccurrence: from how often it occurs together with items that the shopper looked at.
        repeats: from the shopper's own earlier looks at the item.
        text: from the similarity of its text to the texts that the shopper looked at, and to the query.
        residual: from what was learnt about the items beyond their texts.
        second_stage: from what only the second stage knows, such as the length of the session.
    """

    model_config = ConfigDict(frozen=True)

    popularity: _Share
    cooccurrence: _Share
    repeats: _Share
    text: _Share
    residual: _Share
    second_stage: _Share


class HistoryShare(BaseModel):
    """The contribution of one item of the shopper's history to a score."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    sessions_ago: int = Field(ge=0, description="0 is the current session")
    contribution: _Share
    kinds: ScoreByKind


class ScoreBySource(BaseModel):
    """A score by source; the parts add up to it.

    Attributes:
        popularity: from the item's own counts.
        global_preference: from the preferences that all shoppers share.
        query: from the shopper's query.
        second_stage: from what only the second stage knows, such as the length of the session.
        history: from items of the shopper's history, largest contribution first.
        more_history: from all further items of the history together, blocked ones included.
    """

    model_config = ConfigDict(frozen=True)

    popularity: _Share
    global_preference: _Share
    query: _Share
    second_stage: _Share
    history: list[HistoryShare]
    more_history: _Share


class ExplainedItem(BaseModel):
    """The contributions to one score: by source, by kind and by feature, each of which adds up to the score."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float
    sentence: str = Field(description="a sentence for the shopper, with the strongest reasons for the item")
    sources: ScoreBySource
    kinds: ScoreByKind
    features: dict[str, float]


class ExplainAnswer(BaseModel):
    """Explanations, highest score first."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    items: list[ExplainedItem]
    unknown_candidates: list[str] = Field(description="not in the catalogue, or not available")


def add_explain(app: FastAPI, service: ScoringService) -> None:
    """Add the route.

    Args:
        app: the application to extend.
        service: the parts that requests need.
    """

    @app.post("/v1/explain", responses=problems(REFUSALS | NO_PROBABILITY))
    def explain_scores(request: ExplainRequest) -> ExplainAnswer:
        """Explain the scores of candidates by their contributions and in a sentence for the shopper.

        The contributions are exact: by source, by kind and by feature they add up to the score that `/v1/rank` gives.
        """
        request = request.under_pseudonym(service.pseudonymise)
        model, recommender = service.model_for(request), service.recommender
        ranked = recommender.order_candidates(request, model)
        columns = np.array(sorted(model.rows[item_id] for item_id in ranked.item_ids), dtype=np.int64)
        query_vector = recommender.query_vector(request.query, model)
        explained = explain(model, recommender.context(request, model), columns, query_vector) if len(columns) else []
        explained.sort(key=lambda explanation: -explanation.score)  # the shopper may have gone on since the ranking
        return ExplainAnswer(
            adapter_version=model.version,
            scenario=model.manifest.scenario,
            items=[_explained_item(explanation, model, request.history, recommender) for explanation in explained],
            unknown_candidates=ranked.unknown,
        )


def _explained_item(
    explanation: Explanation, model: ServedModel, listed: int, recommender: Recommender
) -> ExplainedItem:
    nameable = [entry for entry in explanation.history if not recommender.is_withheld(model, entry.row)]
    rest = sum(entry.share for entry in explanation.history) - sum(entry.share for entry in nameable[:listed])
    history = [
        HistoryShare(
            item_id=model.item_ids[looked_at.row],
            sessions_ago=looked_at.sessions_ago,
            contribution=looked_at.share,
            kinds=ScoreByKind(**looked_at.shares),
        )
        for looked_at in nameable[:listed]
    ]
    return ExplainedItem(
        item_id=model.item_ids[explanation.row],
        score=explanation.score,
        sentence=because(replace(explanation, history=nameable), model),
        sources=ScoreBySource(
            popularity=explanation.popularity,
            global_preference=explanation.global_preference,
            query=explanation.query,
            second_stage=explanation.second_stage,
            history=history,
            more_history=rest,
        ),
        kinds=ScoreByKind(**explanation.kinds),
        features=dict(explanation.features),
    )
