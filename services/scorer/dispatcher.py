"""One request's turn: which arm answers it, and how long that takes."""

import time
from collections.abc import Callable
from typing import TypeVar

from peft_adapters.registry.rollout import STABLE
from services.metrics.rollouts import RolloutMetrics
from services.scorer.answers import Answer, Answers
from services.scorer.deployment import Deployment
from services.scorer.requests import RankRequest, RecommendRequest, SimilarQuery
from services.scorer.shadowing import Shadowing

Request = TypeVar("Request", RankRequest, RecommendRequest)


class Dispatcher:
    """Answers each request from one arm, from beginning to end.

    Args:
        answers: Makes the answers.
        metrics: Where answers are timed by arm.
    """

    def __init__(self, answers: Answers, metrics: RolloutMetrics) -> None:
        self._answers, self._metrics = answers, metrics
        self._shadowing = Shadowing(metrics)

    def rank(self, request: RankRequest, deployment: Deployment) -> Answer:
        """Order candidates.

        Args:
            request: Under pseudonyms.
            deployment: Has a stable model.
        """
        return self._answered(self._answers.rank, request, deployment)

    def recommend(self, request: RecommendRequest, deployment: Deployment) -> Answer:
        """The best of the catalogue.

        Args:
            request: Under pseudonyms.
            deployment: Has a stable model.
        """
        return self._answered(self._answers.recommend, request, deployment)

    def similar(self, item_id: str, query: SimilarQuery, deployment: Deployment) -> Answer:
        """What is related to an item; no shopper asks, so that the stable arm answers.

        Args:
            item_id: Of which.
            query: What of it.
            deployment: Has a stable model.
        """
        model = deployment.models[STABLE]
        began = time.perf_counter()
        try:
            return self._answers.similar(item_id, query, model)
        finally:
            self._metrics.answer_computed(deployment.scenario, STABLE, seconds=time.perf_counter() - began)

    def _answered(self, make: Callable[..., Answer], request: Request, deployment: Deployment) -> Answer:
        arm = deployment.arm_of(request.user_id or request.session_id)
        began = time.perf_counter()
        answer = make(request, deployment.models[arm])
        self._metrics.answer_computed(deployment.scenario, arm, seconds=time.perf_counter() - began)
        self._answers.remember(request)
        if deployment.shadow is not None:
            self._shadowing.offer(make, request, deployment.scenario, deployment.shadow, answer)
        return answer
