"""Probabilities of what becomes of what is shown: fitted as it comes in, judged by the expected calibration error.

An item is clicked with probability `sigmoid(click . inputs)`, and bought, once clicked, with `sigmoid(purchase .
inputs)`; both together is how likely it is bought at all (Ma et al. 2018, arXiv 1804.07931).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peft_adapters.settings import FEATURES

OUTCOMES = ("click", "purchase")
BINS = 15
INPUTS = len(FEATURES) + 3

# Of what is learnt from, in items shown.
_SLOW_HALF_LIFE = 50_000.0
_FAST_HALF_LIFE = 10_000.0
_BELIEVED = 1_000.0  # curvature of what comes without its own
_RIDGE = 10.0  # as if that much had been seen already; keeps a weight still of which nothing is seen


class Probabilities(NamedTuple):
    """What says how likely each outcome is; a bundle carries it.

    Attributes:
        click: [INPUTS] weights of `outcome_inputs`.
        purchase: [INPUTS] of what is clicked; None where no purchase was learnt.
    """

    click: Tensor
    purchase: Tensor | None

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        """Probability of each outcome, by name, [...], from inputs [..., INPUTS]."""
        return outcome_probabilities([inputs @ weights for weights in self if weights is not None])


def outcome_probabilities(log_odds: Sequence[Tensor]) -> dict[str, Tensor]:
    """Probability of each outcome, by name: of log odds of a click and, where they are known, of a purchase then."""
    click = torch.sigmoid(log_odds[0])
    if len(log_odds) == 1:
        return {"click": click}
    return {"click": click, "purchase": click * torch.sigmoid(log_odds[1])}


def outcome_inputs(features: Tensor, conversion: Tensor, position: Tensor | None = None) -> Tensor:
    """What outcomes follow from, [..., candidates, INPUTS]: features, conversion, 1 and `-log(1 + position)`.

    Args:
        features: [features, ..., candidates].
        conversion: [candidates] purchases over clicks, see `features.conversion`.
        position: [..., candidates] places from 0; None puts each in the first.
    """
    one = torch.ones_like(features[0])
    place = torch.zeros_like(one) if position is None else -position.to(one.dtype).log1p()
    return torch.cat([features, torch.stack([conversion * one, one, place])]).movedim(0, -1)


class OnlineLogistic:
    """Logistic regression, a Newton step a batch, over what is not yet forgotten.

    The steps need no rate: the curvature of the loss, summed up with a half-life, says how far each goes.

    With a `ceiling` the outcome has probability `ceiling * sigmoid(inputs . weights)`, as a purchase has that of the
    click before it. With `p` that, and `s` the sigmoid, the loss has the slope `(p - outcome)(1 - s) / (1 - p)` along
    the log odds, and the expected curvature `p (1 - s)^2 / (1 - p)`; with 1 as ceiling `s - outcome` and `s (1 - s)`.

    Args:
        start: [inputs] weights before anything is learnt.
        half_life: what is learnt from counts half after so many more.

    Attributes:
        weights: [inputs].
    """

    def __init__(self, start: Sequence[float], *, half_life: float) -> None:
        self.weights = torch.tensor(start, dtype=torch.float64)
        self._curvature = torch.zeros(len(start), len(start), dtype=torch.float64)
        self._half_life = half_life

    def probability(self, inputs: Tensor) -> Tensor:
        """Of each row of inputs, [rows] double precision."""
        return torch.sigmoid(inputs.double() @ self.weights)

    def update(self, inputs: Tensor, outcome: Tensor, weight: Tensor, ceiling: Tensor | None = None) -> None:
        """Learn from inputs [rows, inputs] and what became of them, [rows]."""
        inputs, weight = inputs.double(), weight.double()
        own = self.probability(inputs)
        left = torch.ones_like(own) if ceiling is None else (1 - own) / (1 - ceiling * own)  # of the plain slope
        probability = own if ceiling is None else ceiling * own
        gradient = inputs.T @ (weight * left * (probability - outcome.double()))
        curvature = (inputs * (weight * left * probability * (1 - own))[:, None]).T @ inputs
        self._curvature = self._curvature * 0.5 ** (len(inputs) / self._half_life) + curvature
        ridge = _RIDGE * torch.eye(len(self.weights), dtype=torch.float64)
        self.weights = self.weights - torch.linalg.solve(self._curvature + ridge, gradient)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {"weights": self.weights.clone(), "curvature": self._curvature.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self.weights, self._curvature = state["weights"].clone(), state["curvature"].clone()


class CalibratedHead:
    """A logistic regression with a slow memory, and a recalibration of its log odds with a fast one.

    The slow one tells items apart. It lags behind a level that moves, as counters do while they fill; scale and shift
    of its log odds (Platt 1999, here online) follow that.

    Args:
        start: [inputs] weights before anything is learnt.
    """

    def __init__(self, start: Sequence[float]) -> None:
        self.slow = OnlineLogistic(start, half_life=_SLOW_HALF_LIFE)
        self.fast = OnlineLogistic((1.0, 0.0), half_life=_FAST_HALF_LIFE)

    def weights(self, one: int) -> Tensor:
        """Both as one, [inputs]; input `one` is always 1."""
        scale, shift = self.fast.weights
        weights: Tensor = scale * self.slow.weights
        weights[one] += shift
        return weights.float()

    def initialise(self, weights: Tensor) -> None:
        """Go on from what `weights` gave; a first batch is not to throw it over."""
        for own, known in ((self.slow, weights.double()), (self.fast, torch.tensor([1.0, 0.0], dtype=torch.float64))):
            own.load_state_dict({"weights": known, "curvature": _BELIEVED * torch.eye(len(known), dtype=torch.float64)})

    def probability(self, inputs: Tensor) -> Tensor:
        """Of each row of inputs, [rows] double precision."""
        return self.fast.probability(self._log_odds(inputs))

    def update(self, inputs: Tensor, outcome: Tensor, weight: Tensor, ceiling: Tensor | None = None) -> None:
        """Learn as `OnlineLogistic.update` does; the recalibration from log odds that have not learnt it."""
        self.fast.update(self._log_odds(inputs), outcome, weight, ceiling)
        self.slow.update(inputs, outcome, weight, ceiling)

    def _log_odds(self, inputs: Tensor) -> Tensor:
        log_odds = inputs.double() @ self.slow.weights
        return torch.stack([log_odds, torch.ones_like(log_odds)], dim=1)


class CalibrationBins:
    """Predicted against observed in 15 equal bins of probability (Naeini et al. 2015; Guo et al. 2017).

    Args:
        half_life: what was judged counts half after so many more; infinite counts all alike.
    """

    def __init__(self, half_life: float = math.inf) -> None:
        self._half_life = half_life
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)  # how many, predicted, observed

    def add(
        self,
        probability: Tensor,
        happened: Tensor,
        *,
        weight: Tensor | None = None,
        is_correction: Tensor | None = None,
    ) -> None:
        """Take in what was predicted and what came of it.

        Args:
            probability: [judged].
            happened: [judged].
            weight: [judged] how much each counts; None counts each whole.
            is_correction: [judged] what was taken in before, when it had not happened yet.
        """
        probability = probability.double()
        weight = torch.ones_like(probability) if weight is None else weight.double()
        first = weight if is_correction is None else weight * ~is_correction
        place = (probability * BINS).long().clamp(0, BINS - 1)
        self._sums *= 0.5 ** (len(probability) / self._half_life)
        for sums, values in zip(self._sums, (first, first * probability, weight * happened), strict=True):
            sums.index_add_(0, place, values)

    def error(self) -> float | None:
        """Expected calibration error: the mean over what was judged of its bin's |predicted - observed|.

        >>> bins = CalibrationBins()
        >>> bins.add(torch.tensor([0.5, 0.5, 0.1]), torch.tensor([True, False, True]))
        >>> round(bins.error(), 4)
        0.3
        """
        count, predicted, observed = self._sums
        return float((predicted - observed).abs().sum() / count.sum()) if count.any() else None

    def state_dict(self) -> list[list[float]]:
        """All of it, as JSON can hold it."""
        sums: list[list[float]] = self._sums.tolist()
        return sums

    def load_state_dict(self, state: Any) -> None:
        """Put back what `state_dict` gave."""
        self._sums = torch.tensor(state, dtype=torch.float64)
