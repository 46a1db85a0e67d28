"""Losses of positives and of lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, ListBatch
from peft_adapters.learning.lora_replay import LoraBatch
from peft_adapters.learning.step_features import Features, feature_scores
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.features import pad_features, pair_affinities

_LATE_SMOOTHING = 10.0  # clicks: prior towards few late ones
_LEVEL_RATE = 0.05  # weight of the newest batch in the running mean


def positives_losses(
    batch: Batch | LoraBatch, heads: Tensor, features: Features, rows: IntArray, log_expected: Tensor
) -> Tensor:
    """Return the cross-entropy of each event, [events] nats: a sampled softmax with log-Q correction.

    Args:
        batch: micro-batch as `observe` returned it.
        heads: [features] weights of the score.
        features: features of the candidates.
        rows: [candidates] sorted rows of the candidates.
        log_expected: [candidates] log of the probability that a candidate is in the sample.
    """
    targets = torch.from_numpy(np.searchsorted(rows, batch.items))
    return torch.nn.functional.cross_entropy(feature_scores(heads, features) - log_expected, targets, reduction="none")


def focused(losses: Tensor, focus: float) -> Tensor:
    """Weight cross-entropies as the generalised cross-entropy does, with mean weight 1.

    The gradient of `(1 - p ** focus) / focus` (Zhang & Sabuncu 2018) is that of the cross-entropy times `p ** focus`.
    Plain cross-entropy gives most weight to events that no ranking can predict, at the cost of the head of the list.

    Args:
        losses: [events] cross-entropy of each event.
        focus: exponent; 0 is plain cross-entropy.
    """
    likely = torch.exp(-focus * losses.detach())
    return likely / likely.mean() * losses


def generalised_cross_entropy(log_probability: Tensor, focus: float) -> Tensor:
    """Return `(1 - p ** focus) / focus`, whose gradient `focused` follows; cross-entropy if focus is 0.

    Args:
        log_probability: log of the probability of the event's item.
        focus: exponent; 0 is plain cross-entropy.

    >>> generalised_cross_entropy(torch.tensor([-1000.0]), 0.25).tolist()
    [4.0]
    """
    return -torch.expm1(focus * log_probability) / focus if focus else -log_probability


def list_features(
    batch: ListBatch, global_preference: Tensor, query: Tensor, candidate: Tensor, text_share: Tensor
) -> Tensor:
    """Return the features [features, shown] of shown items.

    Args:
        batch: the observed lists.
        global_preference: [dim] preference vector of all shoppers.
        query: [context rows, dim] vectors of the contexts' items.
        candidate: [shown, dim] vectors of the shown items.
        text_share: [shown] share of text in each item's vector.
    """
    owner = torch.from_numpy(batch.owner)
    affinities = pair_affinities(
        batch.affinity_weights, owner, query, candidate, global_preference, text_share, batch.query_vector
    )
    return pad_features(torch.cat([batch.counter_features, affinities]))


class DelayedFeedback:
    """Importance weights that correct a loss for late clicks (fake-negative weighting; Ktena et al. 2019, 1907.06558).

    A list is learnt when its click window has passed: clicked items as positives, the rest as negatives. Let `p` be the
    probability of a click at any time, and `d` the share of clicks after the window. A late click is learnt as a
    negative first, and as a positive afterwards. So of all shown items the learner sees

    - positives: `(1 - d) p` in time and `d p` late, together `p`;
    - negatives: `1 - p` true ones and `d p` that are clicked later, together `1 - p + d p`;

    a total of `1 + d p`, in which positives have the share `p / (1 + d p)` and negatives `(1 - p + d p) / (1 + d p)`.
    The importance weight of each is its true share over the share seen:

    - positives `p / (p / (1 + d p)) = 1 + d p`;
    - negatives `(1 - p) / ((1 - p + d p) / (1 + d p)) = (1 - p)(1 + d p) / (1 - p + d p)`.

    With `d = 1`, where everything is a negative at first, these are the paper's `1 + p` and `(1 - p)(1 + p)`; with
    `d = 0` both are 1. `p` is the model's probability, without a gradient. `d` is counted.

    Attributes:
        in_time: number of clicks within the window.
        late: number of late clicks.
        level: running mean of the scores in lists.
    """

    def __init__(self) -> None:
        self.in_time = self.late = 0  # clicks
        self.level = 0.0  # running mean of scores in lists

    @property
    def late_share(self) -> float:
        """Return `d`, with a prior towards 0 while few clicks are known."""
        return self.late / (self.in_time + self.late + _LATE_SMOOTHING)

    def count(self, happened: npt.NDArray[np.bool_], came_late: npt.NDArray[np.bool_]) -> None:
        """Count clicks.

        Args:
            happened: [shown] whether each item was clicked.
            came_late: [shown] whether the click came after the window.
        """
        late = int((happened & came_late).sum())
        self.late += late
        self.in_time += int(happened.sum()) - late

    def follow(self, scores: Tensor) -> None:
        """Update the mean score.

        Args:
            scores: [shown] scores of the shown items.
        """
        if len(scores):
            self.level += _LEVEL_RATE * (float(scores.mean()) - self.level)

    def weights(self, probability: Tensor, clicked: Tensor) -> Tensor:
        """Return the weight of each shown item.

        Args:
            probability: [shown] probability of a click.
            clicked: [shown] whether the item was clicked.

        >>> feedback = DelayedFeedback()
        >>> feedback.weights(torch.tensor([0.2, 0.2]), torch.tensor([True, False])).tolist()
        [1.0, 1.0]
        """
        late = self.late_share * probability.detach()
        true_share = (1 - probability.detach()) / (1 - probability.detach() + late)
        return (1 + late) * torch.where(clicked, 1.0, true_share)

    def state_dict(self) -> dict[str, float]:
        """Return the whole state, as JSON can hold it."""
        return {"in_time": self.in_time, "late": self.late, "level": self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.in_time, self.late = state["in_time"], state["late"]
        self.level = state["level"]


def lists_loss(batch: ListBatch, scores: Tensor, examination: Tensor, feedback: DelayedFeedback) -> Tensor:
    """Return the logistic loss of shown items, corrected for late clicks: sum over a list, mean over lists, nats.

    Shoppers differ in how often they click, and scores are higher with a context than without. Only items of one list
    are compared, so the mean score of the list is subtracted from its scores. The list of a late click is not known, so
    the running mean of all lists is subtracted there.

    Args:
        batch: the observed lists.
        scores: [shown] scores of the shown items.
        examination: [2] log odds of a click at score 0 in the first position, and decay of attention: a position is
            examined with probability `(1 + position) ** -examination[1]` (Joachims et al. 2017). Neither is part of a
            score.
        feedback: counts of clicks in time and of late ones.
    """
    logits = (
        scores
        - _list_means(batch, scores, feedback.level)
        + examination[0]
        - examination[1] * torch.from_numpy(np.log1p(batch.position)).float()
    )
    clicked = torch.from_numpy(batch.clicked)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, clicked.float(), reduction="none")
    weights = feedback.weights(torch.sigmoid(logits), clicked) * batch.weight[torch.from_numpy(batch.owner)]
    weights = weights * torch.from_numpy(batch.clicked | ~batch.is_correction)  # a late purchase is not another click
    return (weights * losses).sum() / len(batch)


def _list_means(batch: ListBatch, scores: Tensor, level: float) -> Tensor:
    """Return the mean score of each item's list, [shown]."""
    owner = torch.from_numpy(batch.owner)
    sums = torch.zeros(len(batch)).index_add(0, owner, scores)
    means = (sums / torch.bincount(owner, minlength=len(batch)).clamp(min=1))[owner]
    return torch.where(torch.from_numpy(batch.is_correction), level, means)
