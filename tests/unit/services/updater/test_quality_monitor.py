"""What the updater does on drift: rates rise for a while, heads begin again, all of it is counted and said."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from tiny_model import paired_stream, shown_stream, tiny_learner

from peft_adapters.learning.drift import DriftMonitor, DriftResponse
from peft_adapters.learning.learner import Learner
from peft_adapters.settings import DriftSettings, LearnerSettings
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.quality_monitor import QualityMonitor

SETTINGS = Settings(drift=DriftSettings(rate_factor=3.0, raised_batches=2))


class Drifting(DriftMonitor):
    """Raises an alarm at the third batch, and finds it over at the sixth."""

    batches, halvings = 0, 0

    def update(self, losses: Any) -> DriftResponse:
        self.batches += 1
        self._raised = max(0, self._raised - 1)
        if self.batches == 3:
            self._raised = 2
            return DriftResponse(alarms=("adwin",), halvings=self.halvings)
        return DriftResponse(ended="recovered", events=192) if self.batches == 6 else DriftResponse()


class Watched:
    def __init__(self, *, halvings: int = 0) -> None:
        self.registry = CollectorRegistry()
        self.learner = tiny_learner(LearnerSettings(), items=20)
        self.watch = QualityMonitor(self.learner, SETTINGS, UpdaterMetrics(self.registry))
        self.watch.drift = Drifting(SETTINGS.drift)
        self.watch.drift.halvings = halvings

    def learn(self, batches: int) -> list[float]:
        """Rate factors of so many batches."""
        factors = []
        for _ in range(batches):
            batch = self.learner.observe(paired_stream(20, items=20, seed=self.learner.batches_learned))
            self.watch.judge(batch)
            factors.append(self.learner.rate_factor)
            self.learner.learn(batch)
            self.watch.export()
        return factors

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_an_alarm_raises_the_rates_for_a_while_and_is_counted_and_said() -> None:
    watched = Watched()
    with capture_logs() as lines:
        assert watched.learn(3) == [1.0, 1.0, 3.0]
        assert watched.learner.positives.heads_optimiser.state_dict()["batches"] == 1  # begun again, and one step since
        assert watched.value("headwater_drift_rate_factor") == 3
        assert watched.learn(3) == [3.0, 1.0, 1.0]
    assert watched.value("headwater_drift_alarms_total", detector="adwin") == 1
    assert watched.value("headwater_drift_alarms_total", detector="page_hinkley") == 0
    assert watched.value("headwater_drift_rate_factor") == 1
    assert watched.value("headwater_drift_ended_total", how="recovered") == 1
    assert watched.value("headwater_drift_recovery_events") == 192
    assert [line["event"] for line in lines] == ["drift_alarm", "learning_rate_raised", "drift_over"]


def test_counts_are_halved_where_the_alarm_asks_for_it_and_it_is_said() -> None:
    watched = Watched(halvings=2)
    watched.learn(2)
    before = watched.learner.ranker.counters.events.sum()
    with capture_logs() as lines:
        watched.learn(1)
    assert watched.learner.ranker.counters.events.sum() == before / 4 + 20  # and the batch
    assert ("counts_halved", 2) in [(line["event"], line.get("times")) for line in lines]


def test_a_raised_rate_moves_more() -> None:
    def moved(factor: float) -> float:
        learner: Learner = tiny_learner(LearnerSettings(lora=False), items=20)
        learner.rate_factor = factor
        learner.learn(learner.observe(paired_stream(20, items=20, seed=1)))
        return float(learner.ranker.residuals["candidate"].norm())

    assert moved(3.0) == pytest.approx(3 * moved(1.0), rel=1e-4)


def test_what_it_keeps_brings_the_raised_rate_back() -> None:
    watched = Watched()
    watched.learn(3)
    tensors, state = watched.watch.state_dict()
    resumed = Watched()
    resumed.watch.load_state_dict(tensors, state)
    assert resumed.learner.rate_factor == 3
    assert resumed.watch.state_dict()[1] == state


def test_the_calibration_of_lists_is_exported_once_there_is_any() -> None:
    watched = Watched()
    labels = {"scenario": SETTINGS.scenario}
    for shown, _ in shown_stream(20, items=20, seed=1):
        watched.watch.export()
        assert watched.value("headwater_calibration_error", head="purchase", **labels) is None
        watched.learner.learn_lists(watched.learner.observe_lists([shown]))
    watched.watch.export()
    error = watched.value("headwater_calibration_error", head="click", **labels)
    assert error == watched.learner.lists.outcomes.judged["click"].error()
    assert error is not None
