"""Choice of the arm that answers a request."""

import time

from peft_adapters.registry.rollout import STABLE
from services.metrics.rollouts import RolloutMetrics
from services.scorer.deployment import Deployment
from services.scorer.recommender import RankedList, Recommender
from services.scorer.requests import RankRequest, RecommendRequest, SimilarQuery
from services.scorer.shadowing import Shadowing


class Dispatcher:
    """Dispatches each request to the model of one arm, times it, and has the shadow answer it too.

    Args:
        recommender: makes the answers.
        metrics: times answers by arm.
    """

    def __init__(self, recommender: Recommender, metrics: RolloutMetrics) -> None:
        self._recommender, self._metrics = recommender, metrics
        self._shadowing = Shadowing(recommender, metrics)

    def dispatch(self, request: RankRequest | RecommendRequest, deployment: Deployment) -> RankedList:
        """Answer a request from the arm of its shopper.

        Args:
            request: the request, under pseudonyms.
            deployment: the models of its scenario, with a stable one.
        """
        arm = deployment.arm_of(request.user_id or request.session_id)
        began = time.perf_counter()
        answer = self._recommender.answer(request, deployment.models[arm])
        self._metrics.answer_computed(deployment.scenario, arm, seconds=time.perf_counter() - began)
        self._recommender.remember(request)
        if deployment.shadow is not None:
            self._shadowing.submit(request, deployment.scenario, deployment.shadow, answer)
        return answer

    def dispatch_similar(self, item_id: str, query: SimilarQuery, deployment: Deployment) -> RankedList:
        """Return the items related to an item, from the stable arm, because no shopper is known.

        Args:
            item_id: the item of the catalogue.
            query: the parameters of the request.
            deployment: the models of its scenario, with a stable one.
        """
        began = time.perf_counter()
        try:
            return self._recommender.similar_items(item_id, query, deployment.models[STABLE])
        finally:
            self._metrics.answer_computed(deployment.scenario, STABLE, seconds=time.perf_counter() - began)
