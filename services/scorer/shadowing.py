"""A shadow scores what others answer, behind them: its answers are compared, and given to nobody."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from peft_adapters.registry.rollout import SHADOW
from peft_adapters.serving.served_model import ServedModel
from services.metrics.rollouts import RolloutMetrics
from services.scorer.answers import Answer
from services.scorer.requests import RankRequest, RecommendRequest

log = structlog.get_logger(__name__)

MOST_WAITING = 64  # answers to be compared; what comes while so many wait is passed over
IDLE_SECONDS = 1.0  # then the thread ends, until there is something to compare again
COMPARED_ITEMS = 10
NEW_SHARE = 0.02  # of the newest comparison in the running means


@dataclass(frozen=True, slots=True)
class _Job:
    make: Callable[..., Answer]
    request: RankRequest | RecommendRequest
    scenario: str
    shadow: ServedModel
    answer: Answer


class Shadowing:
    """Makes the shadow's answers in a thread of its own, as many as it comes to.

    Args:
        metrics: Where the differences are shown.
    """

    def __init__(self, metrics: RolloutMetrics) -> None:
        self._metrics = metrics
        self._jobs: queue.Queue[_Job] = queue.Queue(MOST_WAITING)
        self._means: dict[str, tuple[int, float, float]] = {}  # by scenario: version, overlap, difference of scores
        self._running = False
        self._lock = threading.Lock()

    def offer(
        self,
        make: Callable[..., Answer],
        request: RankRequest | RecommendRequest,
        scenario: str,
        shadow: ServedModel,
        answer: Answer,
    ) -> None:
        """Have a request that was answered be answered by the shadow, too, if there is room; it never waits.

        Args:
            make: Makes an answer of a request and a model.
            request: What was asked.
            scenario: For which ranking.
            shadow: The model that is to answer.
            answer: What was answered.
        """
        try:
            self._jobs.put_nowait(_Job(make, request, scenario, shadow, answer))
        except queue.Full:
            self._metrics.shadow_passed_over(scenario)
        with self._lock:
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="Shadowing", daemon=True).start()

    def _run(self) -> None:
        """Compare until nothing comes any more."""
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
            except Exception:  # a fault of the shadow's alone
                log.exception("shadow_failed", scenario=job.scenario, version=job.shadow.version)
                self._metrics.shadow_failed(job.scenario)

    def _compare(self, job: _Job) -> None:
        began = time.perf_counter()
        shadow = job.make(job.request, job.shadow)
        self._metrics.answer_computed(job.scenario, SHADOW, seconds=time.perf_counter() - began)
        same, apart = overlap(job.answer, shadow), mean_difference(job.answer, shadow)
        version, *means = self._means.get(job.scenario, (job.shadow.version, same, apart))
        if version != job.shadow.version:
            means = [same, apart]
        same, apart = (mean + NEW_SHARE * (new - mean) for mean, new in zip(means, (same, apart), strict=True))
        self._means[job.scenario] = (job.shadow.version, same, apart)
        self._metrics.shadow_compared(job.scenario, overlap=same, difference=apart)


def overlap(answer: Answer, shadow: Answer) -> float:
    """Share of the best ten that both have; 1 where nothing was to be ranked."""
    best, theirs = (set(each.item_ids[:COMPARED_ITEMS]) for each in (answer, shadow))
    return len(best & theirs) / max(len(best), len(theirs)) if best or theirs else 1.0


def mean_difference(answer: Answer, shadow: Answer) -> float:
    """Mean absolute difference of the scores of the items that both have, less the mean: a ranking knows none."""
    theirs = dict(zip(shadow.item_ids, shadow.scores, strict=True))
    apart = [score - theirs[i] for i, score in zip(answer.item_ids, answer.scores, strict=True) if i in theirs]
    if not apart:
        return 0.0
    mean = sum(apart) / len(apart)
    return sum(abs(one - mean) for one in apart) / len(apart)
