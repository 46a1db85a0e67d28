"""What learns from lists: a head of their own, the global preference, residuals, and how far down a list one looks.

A head that tells what is clicked among what was shown is another one than a head that finds the next item in the whole
catalogue: the first has the click-through to go by and no exposure to explain. The learner keeps both.

Who does not follow impressions does not know what a shopper passed over, and the weights that are best beside it are
not best without. So there is a second head for lists, fitted on the same steps without it, and that is the served one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.losses import DelayedFeedback, Side, list_features, lists_loss
from peft_adapters.learning.outcome_steps import OutcomeSteps
from peft_adapters.optimisers import HeadsOptimiser, RowOptimiser, all_finite
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.features import LIST_INITIAL_WEIGHTS
from peft_adapters.ranking.modalities import Projections
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.settings import FEATURES, NEW_FEATURES, PASSED_OVER, LearnerSettings

_OUTCOMES = "outcomes."
_PROJECTION_SCALE = 0.1  # of steps on projections: as the rate of residuals is to that of positives
_START_LOG_ODDS = -2.0  # of a click on what is shown, before any list is learnt
# Popularity falls with every event: nobody knows what it was when a list was shown. Click-through says it better.
# What is new in the catalogue is not what is new in lists, where every item has been shown often before long.
_NOT_OF_LISTS = ("popularity_fast", "popularity_slow", *NEW_FEATURES)


class ListSteps:
    """Steps on lists; moves the ranker's residuals, projections, and the heads and global preference of lists.

    Args:
        ranker: whose residuals are moved.
        projections: are moved too.
        catalogue: whose vectors of other modalities they project.
        settings: how to learn.

    Attributes:
        heads: [features] weights of the score for what is shown in lists.
        served_heads: [features] the same where it is not known what was passed over.
        global_preference: [dim] what all shoppers like of what they are shown.
        examination: [2] see `lists_loss`.
        feedback: how many clicks come late.
        outcomes: how likely what is shown is clicked and bought.
        lists_learned: lists so far.
    """

    def __init__(
        self, ranker: Ranker, projections: Projections, catalogue: Catalogue, settings: LearnerSettings
    ) -> None:
        used = set(settings.features) - set(_NOT_OF_LISTS)
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
        """One step; the loss (nats a list) before it, no number if none was taken, and the rows it moved, by role."""
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
        """Move the served head alone; `features` [features, shown] stand still."""
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
        """Let the rates of both heads begin again at their high start."""
        for name in ("heads", "served_heads"):
            self._optimisers[name].restart()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as tensors and as JSON can hold it."""
        parts = self._optimisers | {f"rows.{role}": optimiser for role, optimiser in self._row_optimisers.items()}
        tensors = self._learnt()
        tensors |= {f"{part}.{key}": value for part, own in parts.items() for key, value in own.state_dict().items()}
        outcome_tensors, outcomes = self.outcomes.state_dict()
        tensors |= {f"{_OUTCOMES}{name}": value for name, value in outcome_tensors.items()}
        return tensors, {
            "feedback": self.feedback.state_dict(),
            "lists_learned": self.lists_learned,
            "outcomes": outcomes,
        }

    def load_state_dict(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, own in self._learnt().items():
            own.copy_(tensors[name])  # in place: the optimisers hold these tensors
        parts = self._optimisers | {f"rows.{role}": optimiser for role, optimiser in self._row_optimisers.items()}
        for part, optimiser in parts.items():
            prefix = f"{part}."
            optimiser.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        of_outcomes = {k.removeprefix(_OUTCOMES): v for k, v in tensors.items() if k.startswith(_OUTCOMES)}
        self.outcomes.load_state_dict(of_outcomes, state["outcomes"])
        self.feedback.load_state_dict(state["feedback"])
        self.lists_learned = state["lists_learned"]

    def _learnt(self) -> dict[str, Tensor]:
        return {
            "heads": self.heads,
            "served_heads": self.served_heads,
            "examination": self.examination,
            "global_preference": self.global_preference,
        }
