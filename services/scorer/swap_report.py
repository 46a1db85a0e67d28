"""Log lines and metrics of swaps."""

import structlog

from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer.deployment import Deployment
from services.scorer.model_slot import same_version

log = structlog.get_logger(__name__)


class SwapReporter:
    """Reports each new deployment to the log and the metrics.

    Args:
        metrics: the metrics of the process.
        scenario: the scenario whose adapter the metrics of the process describe.
    """

    def __init__(self, metrics: ScorerMetrics, scenario: str) -> None:
        self._metrics, self._scenario = metrics, scenario

    def report(self, before: Deployment, deployment: Deployment) -> None:
        """Report the versions that came into service.

        Args:
            before: the deployment until now.
            deployment: the deployment from now on.
        """
        for arm, model in deployment.models.items():
            old = before.model_of(arm)
            if old is None or not same_version(old, model):
                self._metrics.adapter_swapped()
                log.info(
                    "adapter_served", scenario=deployment.scenario, arm=arm, version=model.version, items=len(model)
                )
        rollout, versions = deployment.rollout, {arm: model.version for arm, model in deployment.models.items()}
        share = rollout.canary.percent / 100 if rollout.canary is not None else 0.0
        self._metrics.rollouts.show(deployment.scenario, rollout.revision, share, versions)
        stable = deployment.stable
        if deployment.scenario == self._scenario and stable is not None and stable is not before.stable:
            self._report_stable(stable)

    def _report_stable(self, model: ServedModel) -> None:
        manifest = model.manifest
        self._metrics.adapter.show(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )
        if model.unused_vectors:
            log.warning("vectors_not_used", vectors=model.unused_vectors, why="another length than the adapter takes")
        self._metrics.show_model(items=int(model.has_text.sum()), unused_vectors=model.unused_vectors)
