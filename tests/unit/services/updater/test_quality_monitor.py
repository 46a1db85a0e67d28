"""The response to drift: raised rates, a reset of the heads, and the metrics of these and of LoRA."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from tiny_model import paired_stream, shown_stream, tiny_learner

from peft_adapters.learning.counts_trial import CountsTrial
from peft_adapters.learning.drift import DriftMonitor, DriftResponse
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lora_trial import LoraTrial
from peft_adapters.settings import DriftSettings, LearnerSettings
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.quality_monitor import QualityMonitor

SETTINGS = Settings(drift=DriftSettings(rate_factor=3.0, raised_batches=2))


class Drifting(DriftMonitor):
    """Raises an alarm at the third batch, and finds it over at the sixth."""

    batches = 0

    def update(self, losses: Any) -> DriftResponse:
        self.batches += 1
        self._raised = max(0, self._raised - 1)
        if self.batches == 3:
            return DriftResponse(alarms=("adwin",))
        return DriftResponse(ended="recovered", events=192) if self.batches == 6 else DriftResponse()


class Monitored:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.learner = tiny_learner(LearnerSettings(), items=20)
        self.monitor = QualityMonitor(self.learner, SETTINGS, UpdaterMetrics(self.registry))
        self.monitor.drift = Drifting(SETTINGS.drift)

    def learn(self, batches: int) -> list[float]:
        """Learn micro-batches, and return the rate factor of each."""
        factors = []
        for _ in range(batches):
            batch = self.learner.observe(paired_stream(20, items=20, seed=self.learner.batches_learned))
            self.monitor.judge(batch)
            factors.append(self.learner.rate_factor)
            self.learner.learn(batch)
            self.monitor.export()
        return factors

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def win_at(monkeypatch: pytest.MonkeyPatch, monitored: Monitored, batch: int) -> None:
    """Let halved counts win their trial at one batch."""
    judge = CountsTrial.judge

    def judged(trial: CountsTrial, *batch_and_ranker: Any) -> bool:
        judge(trial, *batch_and_ranker)
        return monitored.learner.batches_learned == batch - 1

    monkeypatch.setattr(CountsTrial, "judge", judged)


def test_an_alarm_alone_changes_nothing_and_is_counted_and_logged() -> None:
    monitored = Monitored()
    with capture_logs() as lines:
        assert monitored.learn(6) == [1.0] * 6
    assert monitored.value("headwater_drift_alarms_total", detector="adwin") == 1
    assert monitored.value("headwater_drift_alarms_total", detector="page_hinkley") == 0
    assert monitored.value("headwater_drift_ended_total", how="recovered") == 1
    assert monitored.value("headwater_drift_recovery_events") == 192
    assert [line["event"] for line in lines] == ["drift_alarm", "drift_over"]
    assert monitored.learner.ranker.counters.events.sum() == 6 * 20


def test_the_scale_of_the_adapter_and_the_share_of_its_steps_are_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monitored = Monitored()
    for scale, frequency in ((0.0, 0.25), (1.0, 1.0)):
        monkeypatch.setattr(LoraTrial, "scale", scale)
        monkeypatch.setattr(LoraTrial, "frequency", frequency)
        monitored.monitor.export()
        assert (monitored.value("headwater_lora_scale"), monitored.value("headwater_lora_frequency")) == (
            scale,
            frequency,
        )


def test_halved_counts_that_rank_better_replace_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monitored = Monitored()
    win_at(monkeypatch, monitored, 4)
    with capture_logs() as lines:
        assert monitored.learn(4) == [1.0, 1.0, 1.0, 3.0]
    assert monitored.learner.ranker.counters.events.sum() == 2 * 20 / 8 + 2 * 20  # halved since the alarm
    heads = monitored.learner.positives.heads_optimiser.state_dict()
    assert heads["batches"] == 1  # restarted, and one step since
    assert monitored.value("headwater_drift_rate_factor") == 3
    assert [(line["event"], line.get("times")) for line in lines] == [
        ("drift_alarm", None),
        ("learning_rate_raised", None),
        ("counts_halved", 3),
    ]
    assert monitored.learn(2) == [3.0, 1.0]
    assert monitored.learner.counts_trial.counters is not None  # counts halved further are on trial
    assert monitored.value("headwater_drift_rate_factor") == 1


def test_a_raised_rate_moves_more() -> None:
    def moved(factor: float) -> float:
        learner: Learner = tiny_learner(LearnerSettings(lora=False), items=20)
        learner.rate_factor = factor
        learner.learn(learner.observe(paired_stream(20, items=20, seed=1)))
        return float(learner.ranker.residuals["candidate"].norm())

    assert moved(3.0) == pytest.approx(3 * moved(1.0), rel=1e-4)


def test_what_it_keeps_brings_the_raised_rate_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monitored = Monitored()
    win_at(monkeypatch, monitored, 4)
    monitored.learn(4)
    tensors, state = monitored.monitor.state_dict()
    resumed = Monitored()
    resumed.monitor.load_state_dict(tensors, state)
    assert resumed.learner.rate_factor == 3
    assert resumed.monitor.state_dict()[1] == state


def test_the_calibration_of_lists_is_exported_once_there_is_any() -> None:
    monitored = Monitored()
    labels = {"scenario": SETTINGS.scenario}
    for shown, _ in shown_stream(20, items=20, seed=1):
        monitored.monitor.export()
        assert monitored.value("headwater_calibration_error", head="purchase", **labels) is None
        monitored.learner.learn_lists(monitored.learner.observe_lists([shown]))
    monitored.monitor.export()
    error = monitored.value("headwater_calibration_error", head="click", **labels)
    assert error == monitored.learner.lists.outcomes.judged["click"].error()
    assert error is not None
