"""Steps on positives: each click or purchase is ranked among the catalogue.

The head learnt here finds the next item in the whole catalogue. `list_steps` learns another one, which orders what is
shown in a list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.losses import focused, positives_losses
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.learning.step_features import Features, Side, positives_features
from peft_adapters.optimisers import HeadsOptimiser, RowOptimiser, all_finite
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.modalities import Projections
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.settings import FEATURES, LearnerSettings

_UNIFORM_SHARE = 0.5  # of the negatives' distribution; the other half is popularity


class PositiveStep(NamedTuple):
    """Result of a step.

    Attributes:
        loss: nats per event before the step; NaN if the step was skipped.
        features: the features of the batch, detached; None if the step was skipped.
        moved_rows: rows whose residuals were moved, by role.
    """

    loss: float
    features: Features | None
    moved_rows: dict[str, set[int]]


class PositiveSteps:
    """Steps on positives; moves the ranker's residuals, the projections, and a head and preference vector of its own.

    Args:
        ranker: model whose residuals are moved.
        projections: projections that are moved too.
        catalogue: items, with the vectors of other modalities.
        settings: how to learn.

    Attributes:
        heads: [features] weights that find the next item in the catalogue.
        global_preference: [dim] preference vector of all shoppers, learnt from clicks and purchases.
        heads_optimiser: optimiser of the weights of `heads`.
        global_preference_optimiser: the optimiser that moves `global_preference`.
        row_optimisers: by role, move the residuals; empty if residuals are off.
    """

    def __init__(
        self, ranker: Ranker, projections: Projections, catalogue: Catalogue, settings: LearnerSettings
    ) -> None:
        self._ranker, self._projections, self._catalogue, self._settings = ranker, projections, catalogue, settings
        self._mask = torch.tensor([float(name in settings.features) for name in FEATURES])
        self.heads, self.global_preference = ranker.heads.clone(), ranker.global_preference.clone()
        self.heads_optimiser = HeadsOptimiser(self.heads, learning_rate=settings.heads_learning_rate)
        self.global_preference_optimiser = HeadsOptimiser(
            self.global_preference, learning_rate=settings.global_preference_learning_rate
        )
        self.row_optimisers = {
            role: RowOptimiser(learning_rate=settings.residual_learning_rate) for role in ROLES if settings.residuals
        }

    def grow(self, size: int) -> None:
        """Make room for `size` items."""
        for optimiser in self.row_optimisers.values():
            optimiser.grow(size)

    def restart_heads(self) -> None:
        """Restart the rate schedules of heads and preference at their high start."""
        self.heads_optimiser.restart()
        self.global_preference_optimiser.restart()

    def step(self, batch: Batch, *, scale: float, novelty: Tensor | None = None) -> PositiveStep:
        """Move heads, preference, residuals and projections; text vectors are constant.

        Nothing moves if the loss or a gradient is not finite.

        Args:
            batch: the observed micro-batch to learn from.
            scale: factor on all steps but that of the heads. It falls as lists account for more of the events, since a
                list says what was chosen over what. The step is scaled, not the loss: Adam ignores the loss's scale.
            novelty: [events] what each event can still teach about searches, 0 to 1: its weight in the loss, and in
                the length of the steps of heads and preference; None if no event has a query.
        """
        heads, preference = (tensor.clone().requires_grad_() for tensor in (self.heads, self.global_preference))
        rows = np.union1d(batch.context_rows, batch.candidates)
        live_rows, live = self._projections.project_trained(rows, self._catalogue.modality_vectors)
        query = Side(self._ranker, "query", batch.context_rows, live_rows=live_rows, live=live)
        candidate = Side(self._ranker, "candidate", batch.candidates, live_rows=live_rows, live=live)
        features = positives_features(batch, preference, query, candidate)
        losses = positives_losses(batch, heads, features, batch.candidates, batch.log_expected)
        weight = batch.weight if novelty is None else batch.weight * novelty
        loss = (weight * focused(losses, self._settings.loss_focus)).mean()
        parameters = [heads, preference, query.residual, candidate.residual, *self._projections.parameters()]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not all_finite(loss, gradients):
            return PositiveStep(math.nan, None, {})
        teaches = 1.0 if novelty is None else float(novelty.mean())
        self.heads_optimiser.step(gradients[0] * self._mask, scale=teaches)
        self.global_preference_optimiser.step(gradients[1], scale=scale * teaches)
        sides = ((query, gradients[2]), (candidate, gradients[3]))
        moved = {side.role: self._step_residuals(side, gradient, scale) for side, gradient in sides}
        self._projections.step(gradients[4:], scale=scale)
        return PositiveStep(float(loss.detach()), features.detach(), moved)

    def _step_residuals(self, side: Side, gradient: Tensor | None, scale: float) -> set[int]:
        if gradient is None or side.role not in self.row_optimisers:
            return set()
        residuals = self._ranker.residuals[side.role]
        self.row_optimisers[side.role].step(residuals, torch.from_numpy(side.rows), gradient, scale=scale)
        return set(side.rows.tolist())

    # ---- state

    def state_dict(self) -> StateDict:
        """Return weights and optimiser states."""
        return {
            "heads": self.heads,
            "global_preference": self.global_preference,
            "heads_optimiser": self.heads_optimiser.state_dict(),
            "global_preference_optimiser": self.global_preference_optimiser.state_dict(),
            "rows": {role: optimiser.state_dict() for role, optimiser in self.row_optimisers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; weights are copied in place because the optimisers hold the tensors."""
        self.heads.copy_(state["heads"])
        self.global_preference.copy_(state["global_preference"])
        self.heads_optimiser.load_state_dict(state["heads_optimiser"])
        self.global_preference_optimiser.load_state_dict(state["global_preference_optimiser"])
        for role, optimiser in self.row_optimisers.items():
            optimiser.load_state_dict(state["rows"][role])

    def load_published(self, heads: Tensor, global_preference: Tensor) -> None:
        """Start from the weights of a bundle, at the settled learning rates.

        Args:
            heads: [features] published head.
            global_preference: [dim] published preference vector.
        """
        self.heads.copy_(heads)
        self.global_preference.copy_(global_preference)
        for optimiser in (self.heads_optimiser, self.global_preference_optimiser):
            optimiser.settle()


def sample_candidates(
    items: IntArray, counters: Counters, *, negatives: int, seed: tuple[int, int]
) -> tuple[IntArray, Tensor]:
    """Draw the candidates of a step, with the log-Q correction of each (Bengio & Senécal 2008; Yi et al. 2019).

    Negatives are drawn with replacement, half uniformly and half by popularity. `Q` is the probability that a candidate
    is drawn at all. A catalogue of at most `negatives` items is used whole.

    Args:
        items: [events] rows of the positives.
        counters: counters that give the popularity.
        negatives: number of draws.
        seed: the learner's seed and the number of the step, so that a resumed learner draws what it would have drawn.

    Returns:
        [candidates] sorted rows, positives included, and [candidates] log of the probability of each.
    """
    popularity = counters.popularity[-1].astype(np.float64)
    count = len(popularity)
    if count <= negatives:
        return np.arange(count), torch.zeros(count)
    total = popularity.sum()
    probability = np.full(count, 1 / count) if total == 0 else popularity / total
    probability = _UNIFORM_SHARE / count + (1 - _UNIFORM_SHARE) * probability
    drawn = np.random.default_rng(seed).choice(count, size=negatives, p=probability / probability.sum())
    candidates = np.unique(np.concatenate([items, drawn]))
    expected = -np.expm1(negatives * np.log1p(-probability[candidates]))
    return candidates, torch.from_numpy(np.log(expected)).float()
