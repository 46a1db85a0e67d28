"""A trial of halved counts against the counts as they are, on events that neither has counted yet.

After shoppers have changed, old counts outvote new events. Halved, the counts follow sooner; but where a burst of other
shoppers passes, they forget what is still true. Losses rise alike in both cases. So after an alarm halved counts are
kept up beside the others for a while, and replace them only once they rank better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.ranking.affinities import affinity_features, weighted_sum
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.ranker import Ranker

_FEWEST_EVENTS, _MOST_EVENTS = 96, 1_024  # judged in a trial: before a verdict, and without one
# Standard errors of the mean gain. It is tested after each micro-batch, and the events of a shopper are alike, so two
# are not enough; a change of shoppers soon brings more than four.
_CERTAIN = 3.5


class CountsTrial:
    """The halved counters while they are on trial, and what they gain.

    Attributes:
        counters: the halved counters; None while no trial runs.
        sessions: number of sessions that had started before the trial.
    """

    def __init__(self) -> None:
        self.counters: Counters | None = None
        self.sessions = 0
        self._judged, self._gain, self._squares = 0, 0.0, 0.0

    def begin(self, ranker: Ranker, halvings: int) -> None:
        """Begin a trial; one that runs already is ended.

        Args:
            ranker: the counters as they are.
            halvings: number of times that the copy on trial is halved.
        """
        self.end()
        self.counters, self.sessions = ranker.counters.copy(), ranker.neighbours.started
        self.counters.decay(halvings)

    def end(self) -> None:
        """End the trial, and drop its counters."""
        self.counters, self.sessions = None, 0
        self._judged, self._gain, self._squares = 0, 0.0, 0.0

    def copy(self) -> CountsTrial:
        """Return a copy that does not change with this one."""
        copy = CountsTrial()
        copy.__dict__.update(self.__dict__)
        copy.counters = None if self.counters is None else self.counters.copy()
        return copy

    @torch.inference_mode()
    def judge(self, batch: Batch, ranker: Ranker) -> bool:
        """Judge both counters on a micro-batch that neither has counted; end the trial if it has lasted long enough.

        Both rank by the first stage, whose other features are the same.

        Args:
            batch: observed events of the micro-batch.
            ranker: weights, and the counters as they are.

        Returns:
            Whether the halved counters are better.
        """
        if self.counters is None:
            return False
        halved = torch.from_numpy(CounterFeatures.of(self.counters).features(batch.contexts, batch.columns))
        of_halved, of_others = _discounted_gains(batch, ranker, (halved, batch.counter_features))
        gains = of_halved - of_others
        self._judged += len(gains)
        self._gain += float(gains.sum())
        self._squares += float(gains.square().sum())
        if self._judged >= _FEWEST_EVENTS and self._gain > _CERTAIN * math.sqrt(self._squares):
            return True
        if self._judged >= _MOST_EVENTS:
            self.end()
        return False

    # ---- state

    def state_dict(self) -> StateDict:
        """Return the halved counters and what they gained; nothing while no trial runs."""
        if self.counters is None:
            return {}
        figures = torch.tensor([self.sessions, self._judged, self._gain, self._squares], dtype=torch.float64)
        return {"counters": self.counters.state_dict(), "figures": figures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.end()
        if state:
            self.counters = Counters()
            self.counters.load_state_dict(state["counters"])
            sessions, judged, self._gain, self._squares = state["figures"].tolist()
            self.sessions, self._judged = int(sessions), int(judged)


def _discounted_gains(batch: Batch, ranker: Ranker, counted: Sequence[Tensor]) -> list[Tensor]:
    """Return the discounted gains [events] of the events' items, ranked by the first stage with each of some counters.

    Args:
        batch: the observed events.
        ranker: weights to score with.
        counted: counter features [COUNTER_FEATURES, events, columns] of each of the counters.
    """
    affinities = affinity_features(
        batch.affinity_weights,
        ranker.vectors("query", batch.context_rows),
        ranker.vectors("candidate", batch.columns),
        ranker.global_preference,
        ranker.text_share(batch.columns),
        batch.query_vector,
    )
    columns = batch.items if batch.columns is None else np.searchsorted(batch.columns, batch.items)
    item_column = torch.from_numpy(columns)[:, None]
    stands_for = torch.ones(1) if batch.columns is None else torch.exp(-batch.log_expected)
    gains = []
    for features in counted:
        scores = weighted_sum(ranker.heads, features, affinities)
        is_above = (scores >= scores.gather(1, item_column)).scatter(1, item_column, False)
        gains.append(1 / torch.log2(2 + (is_above * stands_for).sum(dim=1).double()))
    return gains
