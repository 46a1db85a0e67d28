"""Prequential evaluation: the quality on events that are not learnt yet, over a rolling window.

Every event gives two judged pairs: its item (label 1) and one other candidate (label 0). A pair's score is the log
of its lift over chance, `log(items * softmax(scores))`. ROC AUC uses the lifts; for log loss, an online logistic
regression maps them to probabilities. With as many zeros as ones, normalised entropy is log loss over `log 2`
(He et al. 2014).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from river import linear_model, optim
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.ranking.arrays import FloatArray

FIGURES = ("roc_auc", "log_loss", "normalised_entropy", "ndcg10", "hr20")

_RATE = 0.01
_LEAST_LIKELIHOOD = 1e-15  # bounds the log loss of one pair
_LIFT_LIMIT = 20.0  # bounds the effect of one extreme score on the calibration


class Judged(NamedTuple):
    """One judged event.

    Attributes:
        lift: log of the item's lift over chance.
        other_lift: log of the other candidate's lift over chance.
        probability: calibrated probability of the item.
        other_probability: calibrated probability of the other candidate.
        rank: rank of the item among all candidates, from 1.
        cold_item: whether this was the item's first event.
        new_user: whether this was the shopper's first event.
    """

    lift: float
    other_lift: float
    probability: float
    other_probability: float
    rank: int
    cold_item: bool
    new_user: bool


class PrequentialEvaluator:
    """Evaluator of the newest events.

    Args:
        window_events: number of events in the window.
        seed: seed of the choice of the other candidate.
    """

    def __init__(self, *, window_events: int = 2_000, seed: int = 0) -> None:
        self._window_events, self._seed = window_events, seed
        self._events = 0
        self._calibrator = _calibrator(1.0, 0.0)
        self._judged: deque[Judged] = deque(maxlen=window_events)

    def update(self, batch: Batch, scores: Tensor) -> list[float]:
        """Add a judged batch, and return the loss of each event relative to chance, nats.

        Args:
            batch: observed batch that is not learnt yet.
            scores: [events, columns] result of `Learner.judge(batch)`.
        """
        lifts, other_lifts, ranks = self._lifts(batch, scores)
        flags = zip(batch.first_of_item.tolist(), batch.new_shopper.tolist(), strict=True)
        for lift, other_lift, rank, (cold, new) in zip(lifts, other_lifts, ranks, flags, strict=True):
            probabilities = self._probability(lift, 1), self._probability(other_lift, 0)
            self._judged.append(Judged(lift, other_lift, *probabilities, rank, cold, new))
        self._events += len(batch)
        return [-lift for lift in lifts]

    def values(self) -> dict[str, float]:
        """Return the figures over the window; an empty mapping before the first event."""
        if not self._judged:
            return {}
        lifts, other_lifts, probabilities, other_probabilities, ranks, cold_item, new_user = map(
            np.array, zip(*self._judged, strict=True)
        )
        likelihoods = np.concatenate([probabilities, 1 - other_probabilities]).clip(_LEAST_LIKELIHOOD)
        log_loss = float(-np.log(likelihoods).mean())
        hits = ranks <= 20
        slices = {"hr20_cold_item": hits[cold_item], "hr20_new_user": hits[new_user]}
        return {
            # Not of calibrated probabilities: a calibration may invert the order, and so hide a model that does.
            "roc_auc": _roc_auc(lifts, other_lifts),
            "log_loss": log_loss,
            "normalised_entropy": log_loss / math.log(2),
            "ndcg10": float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean()),
            "hr20": float(hits.mean()),
            **{name: float(own.mean()) for name, own in slices.items() if len(own)},
        }

    def calibration(self, events: int) -> float | None:
        """Return mean predicted over observed probability of the newest pairs (He et al. 2014); None before any event.

        One of the two is positive, so the observed mean is one half.

        Args:
            events: number of newest events to use.
        """
        newest = list(islice(reversed(self._judged), events))
        predicted = sum(judged.probability + judged.other_probability for judged in newest)
        return predicted / len(newest) if newest else None

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, as JSON can hold it."""
        calibrator = [self._calibrator.weights["lift"], self._calibrator.intercept]
        return {"events": self._events, "calibrator": calibrator, "judged": list(self._judged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._events = state["events"]
        self._calibrator = _calibrator(*state["calibrator"])
        self._judged = deque((Judged(*judged) for judged in state["judged"]), maxlen=self._window_events)

    def _lifts(self, batch: Batch, scores: Tensor) -> tuple[list[float], list[float], list[int]]:
        """Return log lifts of the items and of one other candidate each, and the items' ranks; ties count against."""
        columns = batch.items if batch.columns is None else np.searchsorted(batch.columns, batch.items)
        item_column = torch.from_numpy(columns)[:, None]
        log_chance = -math.log(batch.item_count)
        over_chance = log_probabilities(scores, 0.0 if batch.columns is None else batch.log_expected) - log_chance
        # Any other column: 1 to columns - 1 further, modulo columns.
        generator = np.random.default_rng([self._seed, self._events])
        steps = torch.from_numpy(generator.integers(1, max(2, scores.shape[1]), size=(len(batch), 1)))
        lifts = over_chance.nan_to_num(nan=0.0).clamp(-_LIFT_LIMIT, _LIFT_LIMIT)  # NaN counts as chance
        item_lifts, other_lifts = lifts.gather(1, item_column), lifts.gather(1, (item_column + steps) % scores.shape[1])
        ranks = scores.shape[1] - (scores < scores.gather(1, item_column)).sum(dim=1)  # NaN is no hit
        return item_lifts[:, 0].tolist(), other_lifts[:, 0].tolist(), ranks.tolist()

    def _probability(self, lift: float, label: int) -> float:
        """Return the calibrated probability, then let the calibration learn the label."""
        features = {"lift": lift}
        probability = float(self._calibrator.predict_proba_one(features)[True])
        self._calibrator.learn_one(features, bool(label))
        return probability


def log_probabilities(scores: Tensor, log_expected: Tensor | float) -> Tensor:
    """Return the log of the softmax over the catalogue, [events, columns], nats.

    Args:
        scores: [events, columns] scores of the candidates.
        log_expected: [columns] log of the probability that a column is in the sample; 0 for the whole catalogue.
    """
    return scores - torch.logsumexp(scores - log_expected, dim=1, keepdim=True)


def list_ndcg(scores: Tensor, clicked: Sequence[bool], *, cutoff: int = 10) -> float:
    """Return the NDCG of a list with a click. Ties keep the shown order, and NaN ranks last.

    Args:
        scores: [items] scores of the list's items.
        clicked: whether each item was clicked.
        cutoff: number of ranks that count.

    >>> round(list_ndcg(torch.tensor([0.1, 0.3, 0.2]), [False, False, True]), 4)
    0.6309
    """
    order = torch.argsort(scores.nan_to_num(nan=-math.inf), descending=True, stable=True).tolist()
    gains = [1 / math.log2(rank + 2) for rank in range(cutoff)]
    gained = sum(gain for gain, index in zip(gains, order, strict=False) if clicked[index])
    return gained / sum(gains[: sum(clicked)])


def _roc_auc(positives: FloatArray, negatives: FloatArray) -> float:
    """Return the share of pairs of a positive and a negative whose positive scores higher; a tie counts one half.

    Args:
        positives: [positives] scores of label 1.
        negatives: [negatives] scores of label 0.

    >>> _roc_auc(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
    0.625
    """
    ordered = np.sort(negatives)
    below, not_above = (np.searchsorted(ordered, positives, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(ordered)))


def _calibrator(weight: float, intercept: float) -> Any:
    model = linear_model.LogisticRegression(
        optimizer=optim.SGD(_RATE),
        intercept_init=intercept,
        intercept_lr=_RATE,
        initializer=optim.initializers.Constant(weight),
    )
    model.learn_one({"lift": 0.0}, True)  # creates the weight, which the first prediction would lack
    model.intercept = intercept
    return model
