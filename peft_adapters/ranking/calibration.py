"""Probabilities of clicks and purchases, fitted online and evaluated by the expected calibration error.

A shown item is clicked with probability `sigmoid(click . inputs)`, and a clicked item is bought with probability
`sigmoid(purchase . inputs)`; the product is the probability of a purchase (Ma et al. 2018, arXiv 1804.07931).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peft_adapters.ranking.outcomes import outcome_probabilities

BINS = 15

_SLOW_HALF_LIFE = 50_000.0  # shown items
_FAST_HALF_LIFE = 10_000.0  # shown items
_PRIOR_CURVATURE = 1_000.0  # of loaded weights, which come without their own
_RIDGE = 10.0  # added to the curvature; keeps a weight constant while its input is always zero


class Probabilities(NamedTuple):
    """Weights that predict the outcomes of a shown item; part of a bundle.

    Attributes:
        click: [INPUTS] weights of `outcome_inputs` for a click.
        purchase: [INPUTS] weights for a purchase after a click; None if no purchase was learnt.
    """

    click: Tensor
    purchase: Tensor | None

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the probability [...] of each outcome, by name, for inputs [..., INPUTS]."""
        probabilities = outcome_probabilities([(inputs @ weights).numpy() for weights in self if weights is not None])
        return {outcome: torch.from_numpy(probability) for outcome, probability in probabilities.items()}


def outcome_inputs(features: Tensor, conversion: Tensor, position: Tensor | None = None) -> Tensor:
    """Return the inputs [..., candidates, INPUTS] of outcomes: features, conversion, 1 and `-log(1 + position)`.

    Args:
        features: [FEATURES, ..., candidates] features of the candidates.
        conversion: [candidates] purchases over clicks, see `features.conversion`.
        position: [..., candidates] positions from 0; None puts every candidate at the first position.
    """
    ones = torch.ones_like(features[0])
    position_input = torch.zeros_like(ones) if position is None else -position.to(ones.dtype).log1p()
    return torch.cat([features, torch.stack([conversion * ones, ones, position_input])]).movedim(0, -1)


class OnlineLogistic:
    """Online logistic regression with exponential forgetting and one Newton step per batch.

    It needs no learning rate: the curvature of the loss, summed with a half-life, sets the step size.

    With a `ceiling`, the probability of the outcome is `p = ceiling * sigmoid(inputs . weights)`; a purchase has the
    probability of its click as ceiling. With `s` the sigmoid, the loss has the slope `(p - outcome)(1 - s) / (1 - p)`
    in the log odds and the expected curvature `p (1 - s)^2 / (1 - p)`; for a ceiling of 1 these are `s - outcome` and
    `s (1 - s)`.

    Args:
        start: [inputs] initial weights.
        half_life: number of rows after which a row counts half.

    Attributes:
        weights: [inputs] current weights, double precision.
    """

    def __init__(self, start: Sequence[float], *, half_life: float) -> None:
        self.weights = torch.tensor(start, dtype=torch.float64)
        self._curvature = torch.zeros(len(start), len(start), dtype=torch.float64)
        self._half_life = half_life

    def probability(self, inputs: Tensor) -> Tensor:
        """Return the probability [rows] for inputs [rows, inputs], in double precision."""
        return torch.sigmoid(inputs.double() @ self.weights)

    def update(self, inputs: Tensor, outcome: Tensor, weight: Tensor, ceiling: Tensor | None = None) -> None:
        """Take a Newton step.

        Args:
            inputs: [rows, inputs] inputs of the rows.
            outcome: [rows] True where the outcome happened.
            weight: [rows] weight of each row in the loss.
            ceiling: [rows] factor of the probability; None is 1.
        """
        inputs, weight = inputs.double(), weight.double()
        sigmoid = self.probability(inputs)
        slope_ratio = torch.ones_like(sigmoid) if ceiling is None else (1 - sigmoid) / (1 - ceiling * sigmoid)
        probability = sigmoid if ceiling is None else ceiling * sigmoid
        gradient = inputs.T @ (weight * slope_ratio * (probability - outcome.double()))
        curvature = (inputs * (weight * slope_ratio * probability * (1 - sigmoid))[:, None]).T @ inputs
        self._curvature = self._curvature * 0.5 ** (len(inputs) / self._half_life) + curvature
        ridge = _RIDGE * torch.eye(len(self.weights), dtype=torch.float64)
        self.weights = self.weights - torch.linalg.solve(self._curvature + ridge, gradient)

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights [inputs] and curvature [inputs, inputs]."""
        return {"weights": self.weights.clone(), "curvature": self._curvature.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_dict`."""
        self.weights, self._curvature = state["weights"].clone(), state["curvature"].clone()


class CalibratedHead:
    """A slow logistic regression whose log odds a fast one recalibrates (online Platt scaling; Platt 1999).

    The slow regression distinguishes items, but lags behind a moving base rate, such as that of filling counters. The
    scale and shift of its log odds follow the base rate.

    Args:
        start: [inputs] initial weights.

    Attributes:
        slow: regression of the outcome on the inputs.
        fast: regression of the outcome on the slow regression's log odds.
    """

    def __init__(self, start: Sequence[float]) -> None:
        self.slow = OnlineLogistic(start, half_life=_SLOW_HALF_LIFE)
        self.fast = OnlineLogistic((1.0, 0.0), half_life=_FAST_HALF_LIFE)

    def weights(self, bias: int) -> Tensor:
        """Return the weights [inputs] of the combined model; the input with index `bias` is always 1."""
        scale, shift = self.fast.weights
        weights: Tensor = scale * self.slow.weights
        weights[bias] += shift
        return weights.float()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the states of both regressions."""
        return {"slow": self.slow.state_dict(), "fast": self.fast.state_dict()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the result of `state_dict`."""
        self.slow.load_state_dict(state["slow"])
        self.fast.load_state_dict(state["fast"])

    def initialise(self, weights: Tensor) -> None:
        """Start from combined weights [inputs], with a prior curvature that limits the first steps."""
        identity = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for regression, start in ((self.slow, weights.double()), (self.fast, identity)):
            curvature = _PRIOR_CURVATURE * torch.eye(len(start), dtype=torch.float64)
            regression.load_state_dict({"weights": start, "curvature": curvature})

    def probability(self, inputs: Tensor) -> Tensor:
        """Return the probability [rows] for inputs [rows, inputs], in double precision."""
        return self.fast.probability(self._log_odds(inputs))

    def update(self, inputs: Tensor, outcome: Tensor, weight: Tensor, ceiling: Tensor | None = None) -> None:
        """Update both regressions, the fast one on log odds before the update.

        Args:
            inputs: [rows, inputs] inputs of the rows.
            outcome: [rows] True where the outcome happened.
            weight: [rows] weight of each row in the loss.
            ceiling: [rows] factor of the probability; None is 1.
        """
        self.fast.update(self._log_odds(inputs), outcome, weight, ceiling)
        self.slow.update(inputs, outcome, weight, ceiling)

    def _log_odds(self, inputs: Tensor) -> Tensor:
        """Return inputs [rows, 2] of the fast regression, the slow log odds and 1, for inputs [rows, inputs]."""
        log_odds = inputs.double() @ self.slow.weights
        return torch.stack([log_odds, torch.ones_like(log_odds)], dim=1)


class CalibrationBins:
    """Predicted and observed outcomes in 15 equal bins of probability (Naeini et al. 2015; Guo et al. 2017).

    Args:
        half_life: number of predictions after which a prediction counts half; infinite disables forgetting.
    """

    def __init__(self, half_life: float = math.inf) -> None:
        self._half_life = half_life
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)  # count, predicted, observed

    def add(
        self,
        probability: Tensor,
        outcome: Tensor,
        *,
        weight: Tensor | None = None,
        is_correction: Tensor | None = None,
    ) -> None:
        """Add predictions and their outcomes.

        Args:
            probability: [predictions] predicted probability.
            outcome: [predictions] True where the outcome happened.
            weight: [predictions] weight of each prediction; None is 1.
            is_correction: [predictions] True where the prediction was added before its outcome happened.
        """
        probability = probability.double()
        weight = torch.ones_like(probability) if weight is None else weight.double()
        counted = weight if is_correction is None else weight * ~is_correction
        bins = (probability * BINS).long().clamp(0, BINS - 1)
        self._sums *= 0.5 ** (len(probability) / self._half_life)
        for sums, values in zip(self._sums, (counted, counted * probability, weight * outcome), strict=True):
            sums.index_add_(0, bins, values)

    def error(self) -> float | None:
        """Return the expected calibration error, the weighted mean of |predicted - observed| over bins, or None.

        >>> bins = CalibrationBins()
        >>> bins.add(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([True, False, True]))
        >>> round(bins.error(), 4)
        0.3
        """
        count, predicted, observed = self._sums
        return float((predicted - observed).abs().sum() / count.sum()) if count.any() else None

    def state_dict(self) -> list[list[float]]:
        """Return the sums [3, BINS] as JSON-serialisable lists."""
        sums: list[list[float]] = self._sums.tolist()
        return sums

    def load_state_dict(self, state: Any) -> None:
        """Load the result of `state_dict`."""
        self._sums = torch.tensor(state, dtype=torch.float64)
