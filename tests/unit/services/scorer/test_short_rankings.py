"""What is ranked in the loop itself, where all others wait for it."""

from typing import Any

import pytest

from peft_adapters.registry.rollout import Rollout
from services.scorer.deployment import Deployment
from services.scorer.rankings import SHORT_CANDIDATES, SHORT_CATALOGUE, _is_short
from services.scorer.requests import RankRequest, RecommendRequest


def over(items: int) -> Deployment:
    """A deployment whose model has so many items, and nothing else of a model."""
    model: Any = range(items)
    return Deployment(Rollout(scenario="home"), stable=model)


@pytest.mark.parametrize(
    ("more", "short"),
    [
        ({}, True),
        ({"candidates": [f"i{n}" for n in range(SHORT_CANDIDATES)]}, True),
        ({"candidates": [f"i{n}" for n in range(SHORT_CANDIDATES + 1)]}, False),
        ({"diversity": 0.5}, False),  # compares candidates with each other
        ({"query": "red mug"}, False),  # goes through the whole encoder
    ],
)
def test_only_what_takes_a_millisecond_or_two_is_ranked_in_the_loop(more: dict[str, Any], short: bool) -> None:
    assert _is_short(RankRequest.model_validate({"user_id": "u", "candidates": ["i1"]} | more), over(1)) is short


@pytest.mark.parametrize(
    ("items", "more", "short"),
    [(SHORT_CATALOGUE, {}, True), (SHORT_CATALOGUE + 1, {}, False), (1, {"diversity": 0.5}, False)],
)
def test_of_a_large_catalogue_the_best_are_found_in_a_thread(items: int, more: dict[str, Any], short: bool) -> None:
    assert _is_short(RecommendRequest.model_validate({"user_id": "u"} | more), over(items)) is short
