"""Comparison of a shadow model with the answers that shoppers get; its own answers reach nobody."""

import queue
import threading
import time
from dataclasses import dataclass

import structlog

from peft_adapters.registry.rollout import SHADOW
from peft_adapters.serving.served_model import ServedModel
from services.metrics.rollouts import RolloutMetrics
from services.scorer.recommender import RankedList, Recommender
from services.scorer.requests import RankRequest, RecommendRequest

log = structlog.get_logger(__name__)

MOST_WAITING = 64  # requests in the queue; beyond it they are passed over
IDLE_SECONDS = 1.0  # after which the thread ends, until the next request
COMPARED_ITEMS = 10
NEW_SHARE = 0.02  # weight of the newest comparison in the running means


@dataclass(frozen=True, slots=True)
class _Job:
    request: RankRequest | RecommendRequest
    scenario: str
    shadow: ServedModel
    answer: RankedList


class Shadowing:
    """Answers requests from the shadow in a thread of its own, as many as it can.

    Args:
        recommender: makes the shadow's answers.
        metrics: shows the differences.
    """

    def __init__(self, recommender: Recommender, metrics: RolloutMetrics) -> None:
        self._recommender, self._metrics = recommender, metrics
        self._jobs: queue.Queue[_Job] = queue.Queue(MOST_WAITING)
        self._means: dict[str, tuple[int, float, float]] = {}  # by scenario: version, overlap, difference of scores
        self._running = False
        self._lock = threading.Lock()

    def submit(
        self, request: RankRequest | RecommendRequest, scenario: str, shadow: ServedModel, answer: RankedList
    ) -> None:
        """Queue a request for the shadow if there is room; never blocks.

        Args:
            request: the request, under pseudonyms.
            scenario: the scenario of the request.
            shadow: the model that is to answer.
            answer: the answer that the shopper got.
        """
        try:
            self._jobs.put_nowait(_Job(request, scenario, shadow, answer))
        except queue.Full:
            self._metrics.shadow_passed_over(scenario)
        with self._lock:
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="Shadowing", daemon=True).start()

    def _run(self) -> None:
        """Compare until the queue stays empty."""
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._running = False
                        return
                continue
            try:
                self._compare(job)
            except Exception:  # an error of the shadow alone
                log.exception("shadow_failed", scenario=job.scenario, version=job.shadow.version)
                self._metrics.shadow_failed(job.scenario)

    def _compare(self, job: _Job) -> None:
        began = time.perf_counter()
        shadow = self._recommender.answer(job.request, job.shadow)
        self._metrics.answer_computed(job.scenario, SHADOW, seconds=time.perf_counter() - began)
        common, difference = overlap(job.answer, shadow), mean_difference(job.answer, shadow)
        version, *means = self._means.get(job.scenario, (job.shadow.version, common, difference))
        if version != job.shadow.version:
            means = [common, difference]
        common, difference = (
            mean + NEW_SHARE * (new - mean) for mean, new in zip(means, (common, difference), strict=True)
        )
        self._means[job.scenario] = (job.shadow.version, common, difference)
        self._metrics.shadow_compared(job.scenario, overlap=common, difference=difference)


def overlap(answer: RankedList, shadow: RankedList) -> float:
    """Return the share of the best ten that both lists have; 1 if both are empty."""
    best, shadow_best = (set(ranked.item_ids[:COMPARED_ITEMS]) for ranked in (answer, shadow))
    return len(best & shadow_best) / max(len(best), len(shadow_best)) if best or shadow_best else 1.0


def mean_difference(answer: RankedList, shadow: RankedList) -> float:
    """Return the mean absolute difference of the scores of common items, after subtracting the mean difference.

    A constant added to all scores does not change a ranking.
    """
    shadow_scores = dict(zip(shadow.item_ids, shadow.scores, strict=True))
    differences = [
        score - shadow_scores[item_id]
        for item_id, score in zip(answer.item_ids, answer.scores, strict=True)
        if item_id in shadow_scores
    ]
    if not differences:
        return 0.0
    mean = sum(differences) / len(differences)
    return sum(abs(difference - mean) for difference in differences) / len(differences)
