"""Response bodies of the ranking calls: their schemas, and the functions that render them."""

from typing import Any

from pydantic import BaseModel, Field

from services.scorer.recommender import RankedList


class RankedItem(BaseModel):
    """An item of a list. Probabilities are present once lists are learnt, and are for the first place of a list."""

    item_id: str
    score: float = Field(description="the score that orders the list, unless the request asks for another order")
    click_probability: float | None = Field(default=None, ge=0, le=1)
    purchase_probability: float | None = Field(default=None, ge=0, le=1)
    expected_value: float | None = Field(default=None, ge=0, description="bid times probability, if bids were given")


class Ranking(BaseModel):
    """Items, best first, and the adapter that ordered them."""

    adapter_version: int
    scenario: str
    items: list[RankedItem]


class CandidateRanking(Ranking):
    """Candidates in order; those that filters left out are in neither list."""

    unknown_candidates: list[str] = Field(description="not in the catalogue yet, blocked, or removed")


class BatchAnswer(BaseModel):
    """Answers in the order of the requests, each as its own call would give it."""

    answers: list[CandidateRanking | Ranking]


def ranking(answer: RankedList, scenario: str) -> dict[str, Any]:
    """Return the body of a `Ranking`."""
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


def candidate_ranking(answer: RankedList, scenario: str) -> dict[str, Any]:
    """Return the body of a `CandidateRanking`."""
    return {**ranking(answer, scenario), "unknown_candidates": answer.unknown}
