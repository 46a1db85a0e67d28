"""Metrics of the gate: candidates, the rules that refused them, and roll-backs."""

from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from peft_adapters.lifecycle.gate import Decision
from peft_adapters.lifecycle.gate_rules import RULES

FIGURES = ("loss_difference", "calibration")


class GateMetrics:
    """Decisions of the gate on candidate adapters.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._adapters = Counter(
            "headwater_adapters_total", "Candidate adapters by the gate's decision.", ["outcome"], registry=registry
        )
        for decision in get_args(Decision):
            self._adapters.labels(decision)
        self._refusals = Counter(
            "headwater_gate_refusals_total", "Rules broken by refused candidates.", ["rule"], registry=registry
        )
        for rule in RULES:
            self._refusals.labels(rule)
        self._figures = Gauge(
            "headwater_gate",
            "Figures of the newest candidate: nats of loss above the live adapter's, predicted over observed.",
            ["figure"],
            registry=registry,
        )
        self._refusals_in_a_row = Gauge(
            "headwater_gate_refusals_in_a_row", "Candidates refused since one passed.", registry=registry
        )
        self._rollbacks = Counter(
            "headwater_rollbacks_total",
            "Roll-backs of the learner to a published state.",
            registry=registry,
        )

    def candidate_judged(self, *, rules: Iterable[str], figures: Mapping[str, float | None]) -> None:
        """Count the rules that a candidate broke, and set its figures.

        Args:
            rules: the rules that it broke; none if it passed.
            figures: the figures of the decision; those missing or None stay as they were.
        """
        for rule in rules:
            self._refusals.labels(rule).inc()
        for name in FIGURES:
            value = figures.get(name)
            if value is not None:
                self._figures.labels(name).set(value)

    def adapter_refused(self) -> None:
        """Count a candidate that the gate refused."""
        self._adapters.labels("refused").inc()

    def adapter_published(self) -> None:
        """Count a candidate that was published."""
        self._adapters.labels("published").inc()

    def learner_rolled_back(self) -> None:
        """Count a roll-back of the learner to a published state."""
        self._rollbacks.inc()

    def show_refusals_in_a_row(self, refusals: int) -> None:
        """Set the number of candidates refused since one passed."""
        self._refusals_in_a_row.set(refusals)
