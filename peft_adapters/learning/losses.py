"""Scores of batches as functions of what is learnt, and the losses that follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, ListBatch
from peft_adapters.learning.lora_replay import LoraBatch
from peft_adapters.ranking.counters import IntArray
from peft_adapters.ranking.features import affinity_features, pad_features, pair_affinities, weighted_sum
from peft_adapters.ranking.ranker import Ranker

_LATE_SMOOTHING = 10.0  # clicks: while few are known, late ones are taken for rarer than counted
_LEVEL_RATE = 0.05  # a batch


class Side:
    """Vectors of one role in a step, differentiable in the rows' residuals and in the live texts.

    Args:
        ranker: as it stands.
        role: "query" or "candidate".
        rows: [rows] sorted, distinct.
        live_rows: sorted rows whose text vector is given in `live` [live rows, dim]; the others' stand still.
    """

    def __init__(
        self,
        ranker: Ranker,
        role: str,
        rows: IntArray,
        *,
        live_rows: IntArray | None = None,
        live: Tensor | None = None,
    ) -> None:
        self.role, self.rows = role, rows
        index = torch.from_numpy(rows)
        self.residual = ranker.residuals[role][index].requires_grad_()
        self.text_share = ranker.text_share(rows)
        text = ranker.text[index]
        if live_rows is not None and live is not None:
            _, here, there = np.intersect1d(rows, live_rows, assume_unique=True, return_indices=True)
            text = text.index_copy(0, torch.from_numpy(here), live[torch.from_numpy(there)])
        self.vectors = torch.nn.functional.normalize(text + ranker.gate()[index] * self.residual, dim=1)


class Features(NamedTuple):
    """What the candidates of a step are scored by."""

    counted: Tensor  # [COUNTER_FEATURES, events, candidates]
    affinities: tuple[Tensor, ...]

    def detach(self) -> Features:
        """The same, standing still."""
        return Features(self.counted, tuple(own.detach() for own in self.affinities))


def positives_features(batch: Batch | LoraBatch, global_preference: Tensor, query: Side, candidate: Side) -> Features:
    """Features of the candidates, differentiable in what the sides are and in the global preference [dim]."""
    places = candidate.rows if batch.columns is None else np.searchsorted(batch.columns, candidate.rows)
    return Features(
        batch.counter_features[:, :, torch.from_numpy(places)],
        affinity_features(
            batch.affinity_weights,
            query.vectors,
            candidate.vectors,
            global_preference,
            candidate.text_share,
            batch.query_vector,
        ),
    )


def positives_losses(
    batch: Batch | LoraBatch, heads: Tensor, features: Features, rows: IntArray, log_expected: Tensor
) -> Tensor:
    """Sampled softmax over the candidates `rows`, log-Q corrected; cross-entropy of each event, [events] nats."""
    logits = weighted_sum(heads, *features) - log_expected  # [events, candidates]
    targets = torch.from_numpy(np.searchsorted(rows, batch.items))
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def focused(losses: Tensor, focus: float) -> Tensor:
    """Cross-entropies [events] weighed as the generalised cross-entropy weighs them, mean weight 1.

    Of `(1 - p ** focus) / focus` (Zhang & Sabuncu 2018) the gradient is that of the cross-entropy times `p ** focus`.
    Cross-entropy cares most for what no ranking will ever find, and pays for it at the head of the list.
    """
    likely = torch.exp(-focus * losses.detach())
    return likely / likely.mean() * losses


def generalised_cross_entropy(log_probability: Tensor, focus: float) -> Tensor:
    """`(1 - p ** focus) / focus`, what `focused` descends; cross-entropy where focus is 0.

    >>> generalised_cross_entropy(torch.tensor([-1000.0]), 0.25).tolist()
    [4.0]
    """
    return -torch.expm1(focus * log_probability) / focus if focus else -log_probability


def list_features(
    batch: ListBatch, global_preference: Tensor, query: Tensor, candidate: Tensor, text_share: Tensor
) -> Tensor:
    """Features [features, shown] of what was shown.

    Args:
        batch: the lists.
        global_preference: [dim].
        query: [context rows, dim] vectors of the contexts' items.
        candidate: [shown, dim] vectors of what was shown.
        text_share: [shown] how far text speaks for each.
    """
    owner = torch.from_numpy(batch.owner)
    affinities = pair_affinities(
        batch.affinity_weights, owner, query, candidate, global_preference, text_share, batch.query_vector
    )
    return pad_features(torch.cat([batch.counter_features, affinities]))


class DelayedFeedback:
    """Weights that undo what late clicks do to a loss (fake-negative weighting; Ktena et al. 2019, arXiv 1907.06558).

    What was shown is learnt when its click window has passed: clicked as a positive, the rest as negatives. Let `p` be
    the probability of a click at all, and `d` the share of clicks that come after the window. A late click was learnt
    as a negative and is then learnt as a positive too. So of all that is shown the learner sees

    - positives: `(1 - d) p` in time and `d p` late, together `p`;
    - negatives: `1 - p` true ones and `d p` that are clicked later, together `1 - p + d p`;

    a total of `1 + d p`, in which positives have the share `p / (1 + d p)` and negatives `(1 - p + d p) / (1 + d p)`.
    Each one's importance weight is the share it ought to have over the share it has:

    - positives `p / (p / (1 + d p)) = 1 + d p`;
    - negatives `(1 - p) / ((1 - p + d p) / (1 + d p)) = (1 - p)(1 + d p) / (1 - p + d p)`.

    With `d = 1`, where everything is a negative at first, these are the paper's `1 + p` and `(1 - p)(1 + p)`; with
    `d = 0` both are 1. `p` is the model's own probability, and no gradient runs through it. `d` is counted.
    """

    def __init__(self) -> None:
        self.in_time = self.late = 0  # clicks
        self.level = 0.0  # running mean of scores in lists

    @property
    def late_share(self) -> float:
        """`d`; rarer than counted while few clicks are known."""
        return self.late / (self.in_time + self.late + _LATE_SMOOTHING)

    def count(self, happened: npt.NDArray[np.bool_], came_late: npt.NDArray[np.bool_]) -> None:
        """Take in which of what was shown [shown] was clicked, and when."""
        late = int((happened & came_late).sum())
        self.late += late
        self.in_time += int(happened.sum()) - late

    def follow(self, scores: Tensor) -> None:
        """Take in how high what is shown scores, [shown]."""
        if len(scores):
            self.level += _LEVEL_RATE * (float(scores.mean()) - self.level)

    def weights(self, probability: Tensor, clicked: Tensor) -> Tensor:
        """Weight of each that was shown.

        >>> feedback = DelayedFeedback()
        >>> feedback.weights(torch.tensor([0.2, 0.2]), torch.tensor([True, False])).tolist()
        [1.0, 1.0]
        """
        late = self.late_share * probability.detach()
        true_share = (1 - probability.detach()) / (1 - probability.detach() + late)
        return (1 + late) * torch.where(clicked, 1.0, true_share)

    def state_dict(self) -> dict[str, float]:
        """All of it, as JSON can hold it."""
        return {"in_time": self.in_time, "late": self.late, "level": self.level}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.in_time, self.late = state["in_time"], state["late"]
        self.level = state["level"]


def lists_loss(batch: ListBatch, scores: Tensor, examination: Tensor, feedback: DelayedFeedback) -> Tensor:
    """Logistic loss of what was shown, corrected for late clicks; summed over a list, the mean over lists, in nats.

    Some shoppers click on much and others on little, and with a context everything scores higher than without. What is
    compared is what stood in one list, so a list's mean score is taken off its scores; off a late click, whose list is
    not at hand, what lists have on average.

    Args:
        batch: the lists.
        scores: [shown].
        examination: [2] the log odds of a click at score 0 on the first place, and how fast places lose attention: a
            place is looked at with probability `(1 + position) ** -examination[1]` (Joachims et al. 2017). Neither is
            part of a score.
        feedback: when clicks came so far.
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
    weights = weights * torch.from_numpy(batch.clicked | ~batch.is_correction)  # a late purchase is no click anew
    return (weights * losses).sum() / len(batch)


def _list_means(batch: ListBatch, scores: Tensor, level: float) -> Tensor:
    """[shown] the mean score of the list each belongs to."""
    owner = torch.from_numpy(batch.owner)
    sums = torch.zeros(len(batch)).index_add(0, owner, scores)
    means = (sums / torch.bincount(owner, minlength=len(batch)).clamp(min=1))[owner]
    return torch.where(torch.from_numpy(batch.is_correction), level, means)
