"""What is ranked in the loop itself, where all others wait for it."""

from typing import Any

import pytest

from services.scorer.rankings import SHORT_CANDIDATES, _is_short
from services.scorer.requests import RankRequest


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
    assert _is_short(RankRequest.model_validate({"user_id": "u", "candidates": ["i1"]} | more)) is short
