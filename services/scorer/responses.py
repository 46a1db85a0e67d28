"""What the calls answer: the shapes that OpenAPI tells, and the bodies themselves."""

from typing import Any

from pydantic import BaseModel, Field

from services.scorer.answers import Answer


class RankedItem(BaseModel):
    """An item of a list. Probabilities are there once lists were learnt, and say what if it were shown first."""

    item_id: str
    score: float = Field(description="by which the list is ordered, unless it was asked for in another order")
    click_probability: float | None = Field(default=None, ge=0, le=1)
    purchase_probability: float | None = Field(default=None, ge=0, le=1)
    expected_value: float | None = Field(default=None, ge=0, description="bid times probability, where bids were given")


class Ranking(BaseModel):
    """Items, the best first, and the adapter that put them so."""

    adapter_version: int
    scenario: str
    items: list[RankedItem]


class CandidateRanking(Ranking):
    """Candidates in order; what filters left out is in neither list."""

    unknown_candidates: list[str] = Field(description="not in the catalogue yet, blocked, or removed")


class BatchAnswer(BaseModel):
    """Answers in the order of the requests, each as the call of its own gives it."""

    answers: list[CandidateRanking | Ranking]


def ranking(answer: Answer, scenario: str) -> dict[str, Any]:
    """The body of a `Ranking`."""
    items: list[dict[str, Any]] = [
        {"item_id": item_id, "score": score} for item_id, score in zip(answer.item_ids, answer.scores, strict=True)
    ]
    more = {f"{outcome}_probability": values for outcome, values in answer.probabilities.items()}
    if answer.expected_values is not None:
        more["expected_value"] = answer.expected_values
    for name, values in more.items():
        for item, value in zip(items, values, strict=True):
            item[name] = value
    return {"adapter_version": answer.adapter_version, "scenario": scenario, "items": items}


def candidate_ranking(answer: Answer, scenario: str) -> dict[str, Any]:
    """The body of a `CandidateRanking`."""
    return {**ranking(answer, scenario), "unknown_candidates": answer.unknown}
