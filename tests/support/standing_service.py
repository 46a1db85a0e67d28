"""The parts that the scorer's application needs, without a worker and its threads."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from services.scorer.recommender import Recommender
from services.scorer.service import ScoringService
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import StateSource


def standing_service(
    table: ServingTable,
    recommender: Recommender,
    shoppers: StateSource,
    *,
    pseudonymise: Callable[[str], str] = str,
    problems: Callable[[], dict[str, str]] = dict,
    is_published: Callable[[str], bool] = lambda _: False,
) -> ScoringService:
    """Return a service over a table that the test fills; it is ready as soon as there is a default model."""

    def missing() -> str | None:
        return None if table.model else "no adapter of scenario 'home' is held yet"

    health: Any = SimpleNamespace(missing=missing, problems=problems)
    scenarios: Any = SimpleNamespace(request=is_published)
    return ScoringService(
        table=table,
        scenarios=scenarios,
        recommender=recommender,
        shoppers=shoppers,
        health=health,
        pseudonymise=pseudonymise,
    )
