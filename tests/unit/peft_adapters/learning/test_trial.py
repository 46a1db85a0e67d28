"""The trial of an alternative: what it finds, how it forgets, and its state."""

from __future__ import annotations

import math

import pytest
import torch

from peft_adapters.learning.trial import Trial


def _run(trial: Trial, mean: float, *, batches: int, seed: int = 0, spread: float = 0.3) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        trial.add(mean + spread * torch.randn(128, generator=draw))


def test_share_rises_to_one_where_the_alternative_gains() -> None:
    trial = Trial()
    assert (trial.share, trial.gain, trial.standard_error) == (0.0, 0.0, math.inf)
    _run(trial, 0.05, batches=40)
    assert trial.share == 1.0
    assert trial.gain == pytest.approx(0.05, abs=0.02)
    assert trial.standard_error == pytest.approx(0.3 / math.sqrt(128 * 40), rel=0.3)


def test_share_is_zero_where_the_alternative_loses() -> None:
    trial = Trial()
    _run(trial, -0.05, batches=40)
    assert trial.share == 0.0


def test_share_falls_back_once_the_gain_ends() -> None:
    trial = Trial()
    _run(trial, 0.05, batches=200)
    _run(trial, -0.05, batches=200, seed=1)
    assert trial.share == 0.0


def test_share_is_partial_between_noise_and_certainty() -> None:
    trial = Trial()
    for gain in (0.2, -0.15) * 20:
        trial.add(torch.full((128,), gain))
    assert 0.0 < trial.share < 1.0


def test_few_batches_are_no_evidence() -> None:
    trial = Trial()
    trial.restart(0.4)
    _run(trial, 1.0, batches=7)
    assert trial.share == 0.4
    _run(trial, 1.0, batches=3)
    assert trial.share == 1.0


def test_gains_that_are_not_finite_are_ignored() -> None:
    trial, other = Trial(), Trial()
    for number in range(10):
        trial.add(torch.tensor([0.1 * number, math.nan, math.inf]))
        trial.add(torch.tensor([math.nan]))
        trial.add(torch.zeros(0))
        other.add(torch.tensor([0.1 * number]))
    assert trial.state_dict()["sums"].tolist() == other.state_dict()["sums"].tolist()


def test_state_is_restored_bit_for_bit() -> None:
    trial, restored = Trial(), Trial()
    trial.restart(0.25)
    _run(trial, 0.02, batches=5)
    restored.load_state_dict(trial.state_dict())
    assert restored.share == trial.share == 0.25
    _run(trial, 0.02, batches=20, seed=1)
    _run(restored, 0.02, batches=20, seed=1)
    assert restored.state_dict()["sums"].tolist() == trial.state_dict()["sums"].tolist()
    restored.load_state_dict({})
    assert (restored.share, restored.batches) == (0.0, 0.0)
