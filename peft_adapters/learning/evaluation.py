"""Prequential evaluation: how well the model did on events it had not yet learnt from, over a rolling window.

Every event gives two judged pairs: its own item (label 1) and one other candidate (label 0). A pair's score is the log
of its lift over chance, `log(items * softmax(scores))`. ROC AUC is of the lifts; for log loss, an online logistic
regression turns them into probabilities. With as many zeros as ones, normalised entropy is log loss over `log 2`
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
from river import linear_model, metrics, optim, stats, utils
from torch import Tensor

from peft_adapters.learning.batches import Batch

FIGURES = ("roc_auc", "log_loss", "normalised_entropy", "ndcg10", "hr20")

_RATE = 0.01
_LIFT_LIMIT = 20.0  # keeps one odd score from throwing the calibration


class Judged(NamedTuple):
    """One judged event: its item, the other candidate, and what slices it belongs to."""

    lift: float
    other_lift: float
    probability: float
    other_probability: float
    rank: int
    cold_item: bool
    new_user: bool


class PrequentialEvaluator:
    """Rolling figures of judged events.

    Args:
        window_events: over how many events.
        seed: of the choice of the other candidate.
    """

    def __init__(self, *, window_events: int = 2_000, seed: int = 0) -> None:
        self._window_events, self._seed = window_events, seed
        self._events = 0
        self._calibrator = _calibrator(1.0, 0.0)
        self._judged: deque[Judged] = deque(maxlen=window_events)
        self._new_metrics()

    def update(self, batch: Batch, scores: Tensor) -> list[float]:
        """Take in a judged batch; scores are `Learner.judge(batch)`, [events, columns]. Losses over chance, nats."""
        own, other, ranks = self._lifts(batch, scores)
        flags = zip(batch.first_of_item.tolist(), batch.new_shopper.tolist(), strict=True)
        for lift, other_lift, rank, (cold, new) in zip(own, other, ranks, flags, strict=True):
            probabilities = self._probability(lift, 1), self._probability(other_lift, 0)
            judged = Judged(lift, other_lift, *probabilities, rank, cold, new)
            self._judged.append(judged)
            self._count(judged)
        self._events += len(batch)
        return [-lift for lift in own]

    def values(self) -> dict[str, float]:
        """The figures over the window; nothing before the first event."""
        if not self._judged:
            return {}
        log_loss = self._log_loss.get()
        figures = {"roc_auc": self._roc_auc.get(), "log_loss": log_loss, "normalised_entropy": log_loss / math.log(2)}
        figures |= {name: mean.get() for name, mean in self._means.items()}
        for name in ("cold_item", "new_user"):
            ranks = [judged.rank for judged in self._judged if getattr(judged, name)]
            if ranks:
                figures[f"hr20_{name}"] = sum(rank <= 20 for rank in ranks) / len(ranks)
        return figures

    def calibration(self, events: int) -> float | None:
        """Mean predicted over observed probability of the newest events' pairs (He et al. 2014); None before any.

        Of each pair one is positive, so that a half is observed.
        """
        newest = list(islice(reversed(self._judged), events))
        predicted = sum(judged.probability + judged.other_probability for judged in newest)
        return predicted / len(newest) if newest else None

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        calibrator = [self._calibrator.weights["lift"], self._calibrator.intercept]
        return {"events": self._events, "calibrator": calibrator, "judged": list(self._judged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave: the window's events are counted again."""
        self._events = state["events"]
        self._calibrator = _calibrator(*state["calibrator"])
        self._judged = deque((Judged(*judged) for judged in state["judged"]), maxlen=self._window_events)
        self._new_metrics()
        for judged in self._judged:
            self._count(judged)

    def _new_metrics(self) -> None:
        pairs = 2 * self._window_events
        # river's Rolling hands every call on to what it wraps; its annotations do not say so.
        self._roc_auc: Any = utils.Rolling(metrics.ROCAUC, pairs, n_thresholds=50)
        self._log_loss: Any = utils.Rolling(metrics.LogLoss, pairs)
        self._means: dict[str, Any] = {
            name: utils.Rolling(stats.Mean, self._window_events) for name in ("ndcg10", "hr20")
        }

    def _lifts(self, batch: Batch, scores: Tensor) -> tuple[list[float], list[float], list[int]]:
        """Log lifts of the items and of one other candidate each, and the items' ranks (ties count against)."""
        columns = batch.items if batch.columns is None else np.searchsorted(batch.columns, batch.items)
        own_column = torch.from_numpy(columns)[:, None]
        log_chance = -math.log(batch.item_count)
        over_chance = log_probabilities(scores, 0.0 if batch.columns is None else batch.log_expected) - log_chance
        # Any other column: a step of 1 to columns - 1 further, around the end.
        generator = np.random.default_rng([self._seed, self._events])
        steps = torch.from_numpy(generator.integers(1, max(2, scores.shape[1]), size=(len(batch), 1)))
        lifts = over_chance.nan_to_num(nan=0.0).clamp(-_LIFT_LIMIT, _LIFT_LIMIT)  # no number says nothing
        own, other = lifts.gather(1, own_column), lifts.gather(1, (own_column + steps) % scores.shape[1])
        ranks = scores.shape[1] - (scores < scores.gather(1, own_column)).sum(dim=1)  # no number is no hit
        return own[:, 0].tolist(), other[:, 0].tolist(), ranks.tolist()

    def _probability(self, lift: float, label: int) -> float:
        """The calibrated probability, before the calibration learns from it."""
        features = {"lift": lift}
        probability = float(self._calibrator.predict_proba_one(features)[True])
        self._calibrator.learn_one(features, bool(label))
        return probability

    def _count(self, judged: Judged) -> None:
        # Not of the calibrated probabilities: a calibration may turn the order round, and so hide a model that has.
        self._roc_auc.update(True, _squashed(judged.lift))
        self._roc_auc.update(False, _squashed(judged.other_lift))
        self._log_loss.update(True, judged.probability)
        self._log_loss.update(False, judged.other_probability)
        self._means["ndcg10"].update(1 / math.log2(judged.rank + 1) if judged.rank <= 10 else 0.0)
        self._means["hr20"].update(float(judged.rank <= 20))


def log_probabilities(scores: Tensor, log_expected: Tensor | float) -> Tensor:
    """Log of the softmax over the catalogue, [events, columns], nats.

    Args:
        scores: [events, columns].
        log_expected: [columns] log of the probability that a column is in the sample; 0 for the whole catalogue.
    """
    return scores - torch.logsumexp(scores - log_expected, dim=1, keepdim=True)


def list_ndcg(scores: Tensor, clicked: Sequence[bool], *, cutoff: int = 10) -> float:
    """NDCG of a list in which something was clicked; ties stay in the order shown, and what is no number comes last.

    >>> round(list_ndcg(torch.tensor([0.1, 0.3, 0.2]), [False, False, True]), 4)
    0.6309
    """
    order = torch.argsort(scores.nan_to_num(nan=-math.inf), descending=True, stable=True).tolist()
    gains = [1 / math.log2(rank + 2) for rank in range(cutoff)]
    gained = sum(gain for gain, index in zip(gains, order, strict=False) if clicked[index])
    return gained / sum(gains[: sum(clicked)])


def _squashed(lift: float) -> float:
    """A lift between 0 and 1, in the same order: river's ROC AUC has evenly spaced thresholds there."""
    return 1 / (1 + math.exp(-lift / 2))


def _calibrator(weight: float, intercept: float) -> Any:
    model = linear_model.LogisticRegression(
        optimizer=optim.SGD(_RATE),
        intercept_init=intercept,
        intercept_lr=_RATE,
        initializer=optim.initializers.Constant(weight),
    )
    model.learn_one({"lift": 0.0}, True)  # the weight is there from now on, else the first prediction is without it
    model.intercept = intercept
    return model
