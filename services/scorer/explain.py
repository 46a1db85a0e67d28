"""`/v1/explain`: what the scores of given candidates are made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from peft_adapters.serving.explanations import Explanation, explain
from peft_adapters.serving.served_model import ServedModel
from services.scorer.answers import Answers
from services.scorer.rankings import NO_PROBABILITY, REFUSALS
from services.scorer.requests import RankRequest
from services.scorer.sentences import because
from services.web.json_types import NUMBER_ONLY
from services.web.problems import problems
from streams.events import Id

MAX_EXPLAINED = 50
MAX_TOLD = 128

_Share = Annotated[float, Field(description="what it adds to the score; below 0 it takes away")]


class ExplainRequest(RankRequest):
    """Say what the scores of candidates are made of.

    Attributes:
        history: How many items of the shopper's past are told one by one, those of the largest share first.
    """

    candidates: tuple[Id, ...] = Field(min_length=1, max_length=MAX_EXPLAINED)
    history: Annotated[int, Field(ge=0, le=MAX_TOLD), NUMBER_ONLY] = 20


class Kinds(BaseModel):
    """A score, or a part of one, by kind of evidence; together they are the whole.

    Attributes:
        popularity: How often the item is bought, clicked and shown.
        cooccurrence: How often it goes with what the shopper looked at.
        repeats: That the shopper looked at the item itself.
        text: What its text says, beside the texts of what the shopper looked at and searches for.
        residual: What was learnt of the items beyond their texts.
    """

    model_config = ConfigDict(frozen=True)

    popularity: _Share
    cooccurrence: _Share
    repeats: _Share
    text: _Share
    residual: _Share


class HistoryShare(BaseModel):
    """What one item of the shopper's past adds to a score."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    sessions_ago: int = Field(ge=0, description="0 is the session at hand")
    contribution: _Share
    kinds: Kinds


class Sources(BaseModel):
    """A score by where it comes from; together they are the whole.

    Attributes:
        popularity: The item's own counts.
        global_preference: What all shoppers like.
        query: What the shopper searches for.
        history: Items of the shopper's past, the largest share first.
        more_history: Those that are not told one by one, together; items that are blocked are among them.
    """

    model_config = ConfigDict(frozen=True)

    popularity: _Share
    global_preference: _Share
    query: _Share
    history: list[HistoryShare]
    more_history: _Share


class Explained(BaseModel):
    """What one score is made of: by source, by kind and by feature, each of which adds up to the score."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float
    sentence: str = Field(description="for the shopper to read: what speaks most for the item")
    sources: Sources
    kinds: Kinds
    features: dict[str, float]


class ExplainAnswer(BaseModel):
    """Explanations, the highest score first."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    items: list[Explained]
    unknown_candidates: list[str] = Field(description="not in the catalogue, or not to be offered")


def add_explain(
    app: FastAPI,
    answers: Answers,
    *,
    served: Callable[[ExplainRequest], ServedModel],
    pseudonymise: Callable[[str], str],
) -> None:
    """Add the route.

    Args:
        app: To which.
        answers: Ranks, and knows who asks.
        served: The model that answers a request; raises a problem where there is none.
        pseudonymise: What becomes of ids of users and sessions in requests.
    """

    @app.post("/v1/explain", responses=problems(REFUSALS | NO_PROBABILITY))
    def explain_scores(request: ExplainRequest) -> ExplainAnswer:
        """What the scores of candidates are made of, and a sentence for the shopper.

        The contributions are exact: by source, by kind and by feature they add up to the score that `/v1/rank` gives.
        """
        request = request.under_pseudonym(pseudonymise)
        model = served(request)
        ranked = answers.rank(request, model)
        columns = np.array(sorted(model.rows[item_id] for item_id in ranked.item_ids), dtype=np.int64)
        query_vector = answers.query_vector(request.query, model)
        explained = explain(model, answers.context(request, model), columns, query_vector) if len(columns) else []
        explained.sort(key=lambda own: -own.score)  # as of now: the shopper may have gone on since the ranking
        return ExplainAnswer(
            adapter_version=model.version,
            scenario=model.manifest.scenario,
            items=[_explained(own, model, request.history, answers) for own in explained],
            unknown_candidates=ranked.unknown,
        )


def _explained(own: Explanation, model: ServedModel, told: int, answers: Answers) -> Explained:
    nameable = [one for one in own.history if not answers.is_withheld(model, one.row)]
    untold = sum(one.share for one in own.history) - sum(one.share for one in nameable[:told])
    history = [
        HistoryShare(
            item_id=model.item_ids[looked_at.row],
            sessions_ago=looked_at.sessions_ago,
            contribution=looked_at.share,
            kinds=Kinds(**looked_at.shares),
        )
        for looked_at in nameable[:told]
    ]
    return Explained(
        item_id=model.item_ids[own.row],
        score=own.score,
        sentence=because(replace(own, history=nameable), model),
        sources=Sources(
            popularity=own.popularity,
            global_preference=own.global_preference,
            query=own.query,
            history=history,
            more_history=untold,
        ),
        kinds=Kinds(**own.kinds),
        features=dict(own.features),
    )
