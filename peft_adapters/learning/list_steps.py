"""Steps on lists: a head, a preference vector and an examination model of their own, and the shared residuals.

Ordering what was shown and finding the next item in the whole catalogue need different heads: a list gives
click-through rates, and leaves no exposure to explain. The learner keeps both.

Scorers do not read impressions, so they do not know what a shopper passed over. Weights fitted with that feature are
not the best without it. So a second head for lists is fitted on the same steps without the feature, and served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.losses import DelayedFeedback, list_features, lists_loss
from peft_adapters.learning.outcome_steps import OutcomeSteps
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.learning.step_features import Side
from peft_adapters.optimisers import HeadsOptimiser, RowOptimiser, all_finite
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.features import LIST_INITIAL_WEIGHTS
from peft_adapters.ranking.modalities import Projections
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.settings import FEATURES, NEW_FEATURES, PASSED_OVER, LearnerSettings

_PROJECTION_SCALE = 0.1  # of steps on projections: the ratio of the residuals' rates on lists and on positives
_START_LOG_ODDS = -2.0  # of a click on a shown item, before any list is learnt
# Popularity decays with every event, so its value when a list was shown is not known; click-through serves better.
# Items that are new in the catalogue are not new in lists: there every item has soon been shown often.
NOT_OF_LISTS = ("popularity_fast", "popularity_slow", *NEW_FEATURES)


class ListSteps:
    """Steps on lists; moves the ranker's residuals, the projections, and heads and a preference vector of its own.

    Args:
        ranker: model whose residuals are moved.
        projections: projections that are moved too.
        catalogue: items, with the vectors of other modalities.
        settings: how to learn.

    Attributes:
        heads: [features] weights of the score of shown items.
        served_heads: [features] the same without the features of passed-over items.
        global_preference: [dim] preference vector of all shoppers, learnt from lists.
        examination: [2] parameters of the examination model, see `lists_loss`.
        feedback: counts of clicks in time and of late ones.
        outcomes: probabilities of clicks and purchases.
        lists_learned: number of lists learnt so far.
    """

    def __init__(
        self, ranker: Ranker, projections: Projections, catalogue: Catalogue, settings: LearnerSettings
    ) -> None:
        used = set(settings.features) - set(NOT_OF_LISTS)
        self._mask = torch.tensor([float(name in used) for name in FEATURES])
        self.heads = torch.tensor([LIST_INITIAL_WEIGHTS.get(name, 0.0) for name in FEATURES]) * self._mask
        self._served_mask = self._mask * torch.tensor([float(name not in PASSED_OVER) for name in FEATURES])
        self.served_heads = self.heads * self._served_mask
        self.global_preference = torch.zeros_like(ranker.global_preference)
        self.examination = torch.tensor([_START_LOG_ODDS, 0.0])
        self.feedback = DelayedFeedback()
        self.outcomes = OutcomeSteps(self._served_mask)
        self.lists_learned = 0
        self._ranker, self._projections, self._catalogue = ranker, projections, catalogue
        rate = settings.heads_learning_rate
        self._optimisers = {
            "heads": HeadsOptimiser(self.heads, learning_rate=rate),
            "served_heads": HeadsOptimiser(self.served_heads, learning_rate=rate),
            "examination": HeadsOptimiser(self.examination, learning_rate=rate),
            "global_preference": HeadsOptimiser(
                self.global_preference, learning_rate=settings.list_global_preference_learning_rate
            ),
        }
        self._row_optimisers = {
            role: RowOptimiser(learning_rate=settings.list_residual_learning_rate)
            for role in ROLES
            if settings.residuals
        }

    def grow(self, size: int) -> None:
        """Make room for `size` items."""
        for optimiser in self._row_optimisers.values():
            optimiser.grow(size)

    def step(self, batch: ListBatch) -> tuple[float, dict[str, set[int]]]:
        """Take one step.

        Returns:
            The loss before the step (nats per list; NaN if the step was skipped), and the moved residual rows by role.
        """
        heads, global_preference, examination = (
            tensor.clone().requires_grad_() for tensor in (self.heads, self.global_preference, self.examination)
        )
        rows, place = np.unique(batch.items, return_inverse=True)
        live = self._projections.project_trained(np.union1d(batch.context_rows, rows), self._catalogue.modality_vectors)
        query = Side(self._ranker, "query", batch.context_rows, live_rows=live[0], live=live[1])
        candidate = Side(self._ranker, "candidate", rows, live_rows=live[0], live=live[1])
        shown = torch.from_numpy(place)
        features = list_features(
            batch, global_preference, query.vectors, candidate.vectors[shown], candidate.text_share[shown]
        )
        scores = heads @ features
        loss = lists_loss(batch, scores, examination, self.feedback)
        moved = [
            heads,
            global_preference,
            examination,
            query.residual,
            candidate.residual,
            *self._projections.parameters(),
        ]
        gradients = torch.autograd.grad(loss, moved, allow_unused=True)
        if not all_finite(loss, gradients):
            return math.nan, {}
        features = features.detach()
        self.outcomes.learn(batch, self.outcomes.inputs(batch, features, self._ranker.counters), self.feedback)
        self._step_served(batch, features)
        self._optimisers["heads"].step(gradients[0] * self._mask)
        self._optimisers["global_preference"].step(gradients[1])
        self._optimisers["examination"].step(gradients[2])
        self._projections.step(gradients[5:], scale=_PROJECTION_SCALE)
        moves = ((query, gradients[3]), (candidate, gradients[4]))
        touched = {side.role: self._step_rows(side, gradient) for side, gradient in moves}
        self.feedback.count(batch.clicked, batch.is_correction)
        self.feedback.follow(scores.detach()[torch.from_numpy(~batch.is_correction)])
        self.lists_learned += len(batch)
        return float(loss.detach()), touched

    def _step_served(self, batch: ListBatch, features: Tensor) -> None:
        """Move the served head alone; `features` [features, shown] are constant."""
        heads = self.served_heads.clone().requires_grad_()
        loss = lists_loss(batch, heads @ features, self.examination, self.feedback)
        (gradient,) = torch.autograd.grad(loss, [heads])
        self._optimisers["served_heads"].step(gradient * self._served_mask)

    def _step_rows(self, side: Side, gradient: Tensor | None) -> set[int]:
        if gradient is None or side.role not in self._row_optimisers:
            return set()
        table = self._ranker.residuals[side.role]
        self._row_optimisers[side.role].step(table, torch.from_numpy(side.rows), gradient)
        return set(side.rows.tolist())

    def restart_heads(self) -> None:
        """Restart the rate schedules of both heads at their high start."""
        for name in ("heads", "served_heads"):
            self._optimisers[name].restart()

    # ---- state

    def state_dict(self) -> StateDict:
        """Return weights and optimiser states, those of outcomes included."""
        return self._weights() | {
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()},
            "rows": {role: optimiser.state_dict() for role, optimiser in self._row_optimisers.items()},
            "outcomes": self.outcomes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; weights are copied in place because the optimisers hold the tensors."""
        for name, weights in self._weights().items():
            weights.copy_(state[name])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        for role, row_optimiser in self._row_optimisers.items():
            row_optimiser.load_state_dict(state["rows"][role])
        self.outcomes.load_state_dict(state["outcomes"])

    def counts_state_dict(self) -> StateDict:
        """Return the counts, which stay when the gate rolls weights back."""
        return {
            "feedback": self.feedback.state_dict(),
            "lists_learned": self.lists_learned,
            "outcomes": self.outcomes.counts_state_dict(),
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Restore what `counts_state_dict` returned."""
        self.feedback.load_state_dict(state["feedback"])
        self.lists_learned = state["lists_learned"]
        self.outcomes.load_counts(state["outcomes"])

    def load_published(self, heads: Tensor, global_preference: Tensor) -> None:
        """Start from the weights of a bundle.

        Args:
            heads: [features] published head.
            global_preference: [dim] published preference vector.
        """
        self.heads.copy_(heads)
        self.served_heads.copy_(heads)
        self.global_preference.copy_(global_preference)

    def _weights(self) -> dict[str, Tensor]:
        return {
            "heads": self.heads,
            "served_heads": self.served_heads,
            "examination": self.examination,
            "global_preference": self.global_preference,
        }
