"""What is known of the learner's quality, and what follows from it: the gate's decisions, and haste after drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.drift import DriftMonitor
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Decision, Gate
from peft_adapters.registry.manifest import Manifest
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings

log = structlog.get_logger(__name__)


class QualityMonitor:
    """Judges each micro-batch before it is learnt.

    Args:
        learner: as it stands at the start, which is what the gate can go back to at first.
        settings: of the gate, of drift, and the seed.
        metrics: where to count.

    Attributes:
        prequential: figures over the newest events.
        gate: judges candidates.
        drift: watches for drift.
    """

    def __init__(self, learner: Learner, settings: Settings, metrics: UpdaterMetrics) -> None:
        self._learner, self._metrics, self._scenario = learner, metrics, settings.scenario
        self.prequential = PrequentialEvaluator(seed=settings.learner.seed)
        self.gate = Gate(learner, self.prequential, settings.gate)
        self.drift = DriftMonitor(settings.drift)

    def judge(self, batch: Batch) -> None:
        """Judge a batch that is to be learnt next; at what rate follows from it."""
        scores = self._learner.judge(batch)
        losses = self.prequential.update(batch, scores)
        self.gate.update(batch, scores)
        seen = self.drift.update(losses)
        factor = self.drift.rate_factor
        for detector in seen.alarms:
            self._metrics.drift_alarms.labels(detector).inc()
            log.warning("drift_alarm", detector=detector, events_learned=self._learner.events_learned)
        if factor > self._learner.rate_factor:
            log.warning("learning_rate_raised", factor=factor)
        if seen.halvings:
            log.warning("counts_halved", times=seen.halvings)
        self._learner.adapt_to_drift(factor, halvings=seen.halvings)
        if seen.ended is not None:
            self._metrics.drift_ended.labels(seen.ended).inc()
            self._metrics.drift_recovery_events.set(seen.events)
            log.info("drift_over", how=seen.ended, events=seen.events)

    def tell(self, manifest: Manifest) -> None:
        """Say what the gate decided on a candidate, and why."""
        gate = manifest.gate
        for rule in gate["rules"]:
            self._metrics.gate_refusals.labels(rule).inc()
        for figure in ("loss_difference", "calibration"):
            if gate.get(figure) is not None:
                self._metrics.gate_figures.labels(figure).set(gate[figure])
        told = {name: value for name, value in gate.items() if name != "decision"}
        if gate["decision"] == "refused":
            log.error("adapter_refused", version=manifest.version, **told)
        else:
            log.info("adapter_passed", version=manifest.version, **told)

    def settle(self, decision: Decision | None) -> bool:
        """Draw the consequence of the gate's decision; whether the learner went back."""
        if decision is None:
            return False
        went_back = self.gate.settle(decision)
        if went_back is None:
            return False
        self._metrics.rollbacks.inc()
        log.error("learner_went_back", **went_back)
        return True

    def export(self) -> None:
        """Bring the gauges up to date."""
        for name, value in self.prequential.values().items():
            self._metrics.prequential.labels(name).set(value)
        for head, judged in self._learner.lists.outcomes.judged.items():
            error = judged.error()
            if error is not None:
                self._metrics.calibration_error.labels(self._scenario, head).set(error)
        self._metrics.catalogue_items.set(len(self._learner.catalogue))
        self._metrics.gate_refusals_in_a_row.set(self.gate.refusals)
        self._metrics.drift_rate_factor.set(self._learner.rate_factor)
        self._metrics.drift_recovering.set(self.drift.recovering)

    # ---- what a checkpoint keeps

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as tensors and as JSON can hold it."""
        tensors, gate = self.gate.state_dict()
        return tensors, {"prequential": self.prequential.state_dict(), "gate": gate, "drift": self.drift.state_dict()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.prequential.load_state_dict(state["prequential"])
        self.gate.load_state_dict(tensors, state["gate"])
        self.drift.load_state_dict(state["drift"])
        self._learner.rate_factor = self.drift.rate_factor
