"""Outcome probabilities: the calibration error by hand, and regressions that find and follow known weights."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_adapters.ranking.calibration import (
    BINS,
    CalibratedHead,
    CalibrationBins,
    OnlineLogistic,
    Probabilities,
    outcome_inputs,
)
from peft_adapters.ranking.outcomes import INPUTS
from peft_adapters.settings import FEATURES


def error_of(bins: CalibrationBins) -> float:
    error = bins.error()
    assert error is not None
    return error


def drawn(count: int, weights: tuple[float, ...], *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw inputs [count, 3] of scores and positions, and outcomes [count] by a logistic model of known weights."""
    rng = np.random.default_rng(seed)
    scores, position = torch.from_numpy(rng.normal(0, 1.5, count)), torch.from_numpy(rng.integers(0, 20, count))
    inputs = torch.stack([scores, torch.ones(count), -position.log1p()], dim=1)
    truth = torch.sigmoid(inputs @ torch.tensor(weights, dtype=torch.float64))
    return inputs, torch.from_numpy(rng.random(count)) < truth


def learnt(model: OnlineLogistic, inputs: Tensor, outcome: Tensor, *, batch: int = 200) -> None:
    for start in range(0, len(inputs), batch):
        part = slice(start, start + batch)
        model.update(inputs[part], outcome[part], torch.ones(len(inputs[part])))


def test_the_error_by_hand() -> None:
    bins = CalibrationBins()
    assert bins.error() is None
    bins.add(torch.tensor([0.01, 0.05, 0.2, 0.95, 1.0]), torch.tensor([False, True, False, True, True]))
    # The first two share a bin, as do the last two: |0.06 - 1|, 0.2 and |1.95 - 2| over five.
    assert bins.error() == pytest.approx((0.94 + 0.2 + 0.05) / 5)


def test_the_error_is_that_of_the_papers_formula() -> None:
    """It is the sum over bins of their share times |accuracy - confidence|."""
    rng = np.random.default_rng(0)
    probability, happened = rng.random(3_000), rng.random(3_000) < 0.4
    bins = CalibrationBins()
    for start in range(0, 3_000, 700):
        bins.add(torch.from_numpy(probability[start : start + 700]), torch.from_numpy(happened[start : start + 700]))
    bin_of = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1])
    parts = [(bin_of == n) for n in range(BINS)]
    expected = sum(part.mean() * abs(happened[part].mean() - probability[part].mean()) for part in parts)
    assert bins.error() == pytest.approx(expected)
    assert expected > 0.1


def test_what_happens_later_is_not_counted_twice_and_weights_count() -> None:
    late, whole = CalibrationBins(), CalibrationBins()
    probability = torch.tensor([0.3, 0.3, 0.6])
    late.add(probability, torch.tensor([False, True, False]))
    late.add(probability[:1], torch.tensor([True]), is_correction=torch.tensor([True]))
    nothing = torch.tensor([1.0, 1.0, 1.0, 0.0])
    whole.add(torch.tensor([0.3, 0.3, 0.6, 0.9]), torch.tensor([True, True, False, False]), weight=nothing)
    assert late.error() == whole.error() == pytest.approx((2 - 0.6 + 0.6) / 3)


def test_old_judgements_fade() -> None:
    bins = CalibrationBins(half_life=10)
    wrong, right = torch.full((10,), 0.99), torch.zeros(100)
    bins.add(wrong, torch.zeros(10, dtype=torch.bool))
    assert bins.error() == pytest.approx(0.99)
    bins.add(right, torch.zeros(100, dtype=torch.bool))
    assert error_of(bins) < 0.01


def test_the_truth_is_found_and_predictions_are_calibrated_before_they_are_learnt_from() -> None:
    """The prequential error over 20,000 rows is below 0.02; without training it would be 0.07."""
    truth = (0.6, -0.5, 0.4)
    inputs, outcome = drawn(20_000, truth, seed=1)
    model, bins, untouched = OnlineLogistic((1.0, -2.0, 0.0), half_life=10_000), CalibrationBins(), CalibrationBins()
    for start in range(0, 20_000, 200):
        part = slice(start, start + 200)
        bins.add(model.probability(inputs[part]), outcome[part])
        untouched.add(OnlineLogistic((1.0, -2.0, 0.0), half_life=10_000).probability(inputs[part]), outcome[part])
        model.update(inputs[part], outcome[part], torch.ones(200))
    assert model.weights.tolist() == pytest.approx(truth, abs=0.15)
    assert error_of(bins) < 0.02 < 0.06 < error_of(untouched)


def test_a_truth_that_moves_is_followed() -> None:
    model = OnlineLogistic((1.0, -2.0, 0.0), half_life=10_000)
    learnt(model, *drawn(40_000, (1.0, -2.0, 0.3), seed=2))
    learnt(model, *drawn(40_000, (0.5, 0.5, 0.3), seed=3))
    assert model.weights.tolist() == pytest.approx([0.5, 0.5, 0.3], abs=0.2)


def test_the_fast_half_of_a_head_follows_a_level_and_its_weights_say_what_it_says() -> None:
    head, slow = CalibratedHead((1.0, -2.0, 0.0)), OnlineLogistic((1.0, -2.0, 0.0), half_life=50_000)
    parts = [drawn(60_000, (1.0, -1.0, 0.3), seed=9), drawn(20_000, (1.0, 0.5, 0.3), seed=10)]
    inputs, outcome = (torch.cat(both) for both in zip(*parts, strict=True))
    for start in range(0, len(inputs), 200):
        part = slice(start, start + 200)
        for each in (head, slow):
            each.update(inputs[part], outcome[part], torch.ones(200))
    fresh, happened = drawn(20_000, (1.0, 0.5, 0.3), seed=11)
    errors = [abs(float(each.probability(fresh).mean() - happened.double().mean())) for each in (head, slow)]
    assert errors[0] < 0.03 < 0.06 < errors[1]
    torch.testing.assert_close(torch.sigmoid(fresh.float() @ head.weights(1)).double(), head.probability(fresh))
    other = CalibratedHead((0.0, 0.0, 0.0))
    other.initialise(head.weights(1))
    torch.testing.assert_close(other.probability(fresh), head.probability(fresh))
    other.update(inputs[:200], outcome[:200], torch.ones(200))
    assert (other.weights(1) - head.weights(1)).abs().max() < 0.2  # towards the earlier base rate, which was 1.5 lower


def test_of_which_nothing_is_seen_stands_still() -> None:
    model = OnlineLogistic((1.0, -2.0, 0.7), half_life=10_000)
    inputs, outcome = drawn(100_000, (1.0, 0.0, 0.0), seed=4)
    inputs[:, 2] = 0  # every item at the first position
    learnt(model, inputs, outcome)
    assert model.weights[2] == 0.7
    before = model.weights.clone()
    model.update(inputs[:50], outcome[:50], torch.zeros(50))
    assert torch.equal(model.weights, before)


def test_one_outcome_alone_does_not_run_away() -> None:
    model = OnlineLogistic((1.0, -2.0, 0.0), half_life=10_000)
    inputs, _ = drawn(50_000, (0.0, 0.0, 0.0), seed=5)
    learnt(model, inputs, torch.zeros(50_000, dtype=torch.bool))
    assert torch.isfinite(model.weights).all()
    assert model.weights.abs().max() < 20
    assert model.probability(inputs).mean() < 0.01


def test_restored_it_goes_on_bit_for_bit() -> None:
    inputs, outcome = drawn(2_000, (0.6, -0.5, 0.4), seed=6)
    whole, first, second = (OnlineLogistic((1.0, -2.0, 0.0), half_life=10_000) for _ in range(3))
    learnt(whole, inputs, outcome)
    learnt(first, inputs[:1_000], outcome[:1_000])
    second.load_state_dict(first.state_dict())
    learnt(second, inputs[1_000:], outcome[1_000:])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_what_has_a_ceiling_is_found_below_it() -> None:
    """The probability of a click is given, and only that of a purchase after it is learnt."""
    rng = np.random.default_rng(8)
    inputs = torch.from_numpy(np.stack([rng.normal(0, 1, 40_000), np.ones(40_000)], axis=1))
    ceiling = torch.sigmoid(inputs[:, 0] - 1)  # clicks and purchases depend on the same input
    truth = torch.tensor([-0.8, 0.5], dtype=torch.float64)
    bought = torch.from_numpy(rng.random(40_000)) < ceiling * torch.sigmoid(inputs @ truth)
    model = OnlineLogistic((0.0, -2.0), half_life=100_000)
    for start in range(0, 40_000, 200):
        part = slice(start, start + 200)
        model.update(inputs[part], bought[part], torch.ones(200), ceiling=ceiling[part])
    assert model.weights.tolist() == pytest.approx(truth.tolist(), abs=0.1)


def test_its_steps_are_along_the_slope_of_the_loss() -> None:
    inputs, outcome = drawn(50, (0.6, -0.5, 0.4), seed=7)
    ceiling = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)
    model = OnlineLogistic((1.0, -2.0, 0.3), half_life=math.inf)
    weights = model.weights.clone().requires_grad_()
    probability = ceiling * torch.sigmoid(inputs @ weights)
    loss = torch.nn.functional.binary_cross_entropy(probability, outcome.double(), reduction="sum")
    (slope,) = torch.autograd.grad(loss, [weights])
    before = model.weights
    model.update(inputs, outcome, torch.ones(50), ceiling=ceiling)
    curvature = model.state_dict()["curvature"] + 10 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(curvature @ (before - model.weights), slope)


def test_a_purchase_is_a_click_and_what_follows_it() -> None:
    generator = torch.Generator().manual_seed(0)
    features, converted = torch.randn(len(FEATURES), 2, 5, generator=generator), torch.arange(5.0)
    first, third = outcome_inputs(features, converted), outcome_inputs(features, converted, torch.full((2, 5), 2))
    torch.testing.assert_close(first[1, 4], torch.cat([features[:, 1, 4], torch.tensor([4.0, 1.0, 0.0])]))
    torch.testing.assert_close(third[1, 4], torch.cat([features[:, 1, 4], torch.tensor([4.0, 1.0, -math.log(3)])]))
    click, purchase = torch.randn(2, INPUTS, generator=generator)
    both = Probabilities(click, purchase)(first)
    torch.testing.assert_close(both["click"], torch.sigmoid(first @ click))
    torch.testing.assert_close(both["purchase"], both["click"] * torch.sigmoid(first @ purchase))
    assert set(Probabilities(click, None)(first)) == {"click"}
