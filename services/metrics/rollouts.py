"""Metrics of the arms of a rollout: stable version, canary and shadow."""

from collections.abc import Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from peft_adapters.registry.rollout import ARMS
from services.metrics.series import REQUEST_BUCKETS_SECONDS


class RolloutMetrics:
    """Versions, answer times and shadow comparisons by scenario and arm.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._arm_version = Gauge(
            "headwater_arm_version", "Version that an arm holds.", ["scenario", "arm"], registry=registry
        )
        self._canary_share = Gauge(
            "headwater_canary_share_ratio", "Share of shoppers on the canary.", ["scenario"], registry=registry
        )
        self._revision = Gauge(
            "headwater_rollout_revision", "Revision of the rollout in force.", ["scenario"], registry=registry
        )
        self._answer_seconds = Histogram(
            "headwater_arm_answer_seconds",
            "Time to compute an answer, without HTTP.",
            ["scenario", "arm"],
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self._answer_seconds_of = cache(self._answer_seconds.labels)
        self._shadow_answers = Counter(
            "headwater_shadow_answers_total",
            "Requests for the shadow: compared, failed, or passed over because it was busy.",
            ["scenario", "outcome"],
            registry=registry,
        )
        self._shadow_overlap = Gauge(
            "headwater_shadow_overlap_ratio",
            "Share of the best ten that the shadow has in common; running mean of about 50 answers.",
            ["scenario"],
            registry=registry,
        )
        self._shadow_difference = Gauge(
            "headwater_shadow_score_difference",
            "Mean distance of the shadow's scores from those answered, up to a constant; running mean of about 50 "
            "answers.",
            ["scenario"],
            registry=registry,
        )

    def show(self, scenario: str, revision: int, share: float, versions: Mapping[str, int]) -> None:
        """Set the deployment of a scenario.

        Args:
            scenario: the scenario that is served.
            revision: the revision of the rollout in force.
            share: the canary's share of shoppers, 0 to 1.
            versions: the version of each arm that has one.
        """
        self._revision.labels(scenario).set(revision)
        self._canary_share.labels(scenario).set(share if "canary" in versions else 0.0)
        for arm in ARMS:
            if arm in versions:
                self._arm_version.labels(scenario, arm).set(versions[arm])
            else:
                self._arm_version.remove(scenario, arm)

    def scenario_dropped(self, scenario: str) -> None:
        """Remove the series of a scenario that is served no longer."""
        for gauge in (self._revision, self._canary_share, self._shadow_overlap, self._shadow_difference):
            gauge.remove(scenario)
        for arm in ARMS:
            self._arm_version.remove(scenario, arm)
            self._answer_seconds.remove(scenario, arm)
        self._answer_seconds_of.cache_clear()

    def answer_computed(self, scenario: str, arm: str, *, seconds: float) -> None:
        """Observe the time to compute one answer.

        Args:
            scenario: the scenario of the request.
            arm: the arm whose model answered.
            seconds: the time of the computation, without HTTP.
        """
        self._answer_seconds_of(scenario, arm).observe(seconds)

    def shadow_passed_over(self, scenario: str) -> None:
        """Count a request that the shadow did not see because its queue was full."""
        self._shadow_answers.labels(scenario, "passed_over").inc()

    def shadow_failed(self, scenario: str) -> None:
        """Count a request on which the shadow raised an error."""
        self._shadow_answers.labels(scenario, "failed").inc()

    def shadow_compared(self, scenario: str, *, overlap: float, difference: float) -> None:
        """Count a comparison of the shadow with the answer, and set the running means.

        Args:
            scenario: the scenario of the request.
            overlap: the running mean of the share of the best ten in common.
            difference: the running mean of the distance of scores.
        """
        self._shadow_answers.labels(scenario, "compared").inc()
        self._shadow_overlap.labels(scenario).set(overlap)
        self._shadow_difference.labels(scenario).set(difference)
