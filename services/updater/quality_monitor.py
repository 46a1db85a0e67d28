"""Quality of the learner: prequential evaluation, the gate's decisions, and the response to drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.drift import DriftMonitor, respond_to_drift
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.state_dicts import join_tensors, split_tensors
from peft_adapters.lifecycle.gate import Decision, Gate
from peft_adapters.registry.manifest import Manifest
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings

log = structlog.get_logger(__name__)


class QualityMonitor:
    """Evaluation of each micro-batch before it is learnt, and what follows from it.

    Args:
        learner: the learner, in the state that the gate rolls back to at first.
        settings: the settings of the gate and of drift, and the seed.
        metrics: the updater's metrics.

    Attributes:
        prequential: the evaluation over the newest events.
        gate: the gate that judges candidates.
        drift: the drift monitor.
    """

    def __init__(self, learner: Learner, settings: Settings, metrics: UpdaterMetrics) -> None:
        self._learner, self._metrics, self._scenario = learner, metrics, settings.scenario
        self.prequential = PrequentialEvaluator(seed=settings.learner.seed)
        self.gate = Gate(learner, self.prequential, settings.gate)
        self.drift = DriftMonitor(settings.drift)

    def judge(self, batch: Batch) -> None:
        """Evaluate a micro-batch that is learnt next, and set the learning rate according to drift."""
        scores = self._learner.judge(batch)
        losses = self.prequential.update(batch, scores)
        self.gate.update(batch, scores)
        rate_before = self._learner.rate_factor
        response = respond_to_drift(self._learner, self.drift, batch, losses)
        for detector in response.alarms:
            self._metrics.drift.alarm_raised(detector)
            log.warning("drift_alarm", detector=detector, events_learned=self._learner.events_learned)
        if self._learner.rate_factor > rate_before:
            log.warning("learning_rate_raised", factor=self._learner.rate_factor)
        if response.halvings:
            log.warning("counts_halved", times=response.halvings)
        if response.ended is not None:
            self._metrics.drift.alarm_ended(response.ended, events=response.events)
            log.info("drift_over", how=response.ended, events=response.events)

    def report_candidate(self, manifest: Manifest) -> None:
        """Log the gate's decision on a candidate and its reasons, and count them."""
        decision = manifest.gate
        self._metrics.gate.candidate_judged(rules=decision["rules"], figures=decision)
        details = {name: value for name, value in decision.items() if name != "decision"}
        if decision["decision"] == "refused":
            log.error("adapter_refused", version=manifest.version, **details)
        else:
            log.info("adapter_passed", version=manifest.version, **details)

    def apply_decision(self, decision: Decision | None) -> bool:
        """Apply the gate's decision. Returns True if the learner was rolled back.

        Args:
            decision: the decision on the newest candidate; None if there is no new one.
        """
        if decision is None:
            return False
        rolled_back = self.gate.apply(decision)
        if rolled_back is None:
            return False
        self._metrics.gate.learner_rolled_back()
        log.error("learner_went_back", **rolled_back)
        return True

    def export(self) -> None:
        """Set the gauges to the present state."""
        self._metrics.learning.show_quality(self.prequential.values())
        for head, judged in self._learner.lists.outcomes.judged.items():
            error = judged.error()
            if error is not None:
                self._metrics.learning.show_calibration_error(self._scenario, head, error)
        self._metrics.learning.show_catalogue(len(self._learner.catalogue))
        trial = self._learner.lora_steps.trial
        self._metrics.learning.show_lora(scale=trial.scale, frequency=trial.frequency)
        self._metrics.gate.show_refusals_in_a_row(self.gate.refusals)
        self._metrics.drift.show(rate_factor=self._learner.rate_factor, recovering=self.drift.recovering)

    # ---- checkpoints

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state as tensors and as JSON values, for a checkpoint."""
        tensors, gate = split_tensors(self.gate.state_dict())
        return tensors, {"prequential": self.prequential.state_dict(), "gate": gate, "drift": self.drift.state_dict()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.prequential.load_state_dict(state["prequential"])
        self.gate.load_state_dict(join_tensors(tensors, state["gate"]))
        self.drift.load_state_dict(state["drift"])
        self._learner.rate_factor = self.drift.rate_factor
