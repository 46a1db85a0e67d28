"""Counter features: what streaming counters say of candidates to those who ask, by compiled loops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import kernels
from peft_adapters.ranking.counters import MATRICES, Counters, FloatArray, IntArray, SparseCounts
from peft_adapters.ranking.features import SMOOTHING_EVENTS, click_through
from peft_adapters.ranking.recency import HISTORY_RECENCY, NEAR_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES

_RECENCY = tuple(own.table for own in (SESSION_RECENCY, NEAR_RECENCY, HISTORY_RECENCY))


class CounterFeatures:
    """Counters as they stand, with what does not depend on who asks worked out.

    Args:
        counters: not looked at again once they have moved on.
    """

    def __init__(self, counters: Counters) -> None:
        self._items = len(counters.events)
        self._counts = tuple(_ready(counters.matrices[name]) for name in MATRICES)
        total = np.maximum(counters.popularity.sum(axis=1, keepdims=True), 1.0)
        popular = self._items * counters.popularity / total  # [half-lives, items]
        root_share = np.sqrt(popular[1] / max(self._items, 1) + SMOOTHING_EVENTS / total[1, 0])
        never_sold = counters.events == 0
        self._standing: FloatArray = np.stack(
            [*np.log1p(popular), click_through(counters), never_sold, root_share]
        ).astype(np.float32)

    def features(self, contexts: Contexts, columns: IntArray | None) -> Tensor:
        """Features of candidates, [COUNTER_FEATURES, contexts, candidates].

        Args:
            contexts: who asks.
            columns: [candidates] distinct rows of the candidates; None is the whole catalogue.
        """
        columns = np.arange(self._items) if columns is None else columns
        found = np.empty((len(COUNTER_FEATURES), len(contexts), len(columns)), dtype=np.float32)
        self.put(contexts, columns, found)
        return torch.from_numpy(found)

    def put(self, contexts: Contexts, columns: IntArray, found: FloatArray) -> None:
        """The same, into an array that there is.

        Raises:
            IndexError: an item is none of those that were counted; compiled loops would not notice.
        """
        highest = kernels.highest(contexts.items, contexts.passed, columns)
        if highest >= self._items:
            raise IndexError(f"row {highest} is asked for, and there are {self._items} items")
        kernels.counted(contexts.items, contexts.ages, self._counts, _RECENCY, self._standing, columns, found)


def _ready(counts: SparseCounts) -> tuple[FloatArray, tuple[object, ...], tuple[object, ...]]:
    """What `kernels.follow` takes."""
    main, recent = ((part.indptr, part.indices, part.data) for part in counts.parts())
    return counts.row_sums + np.float32(SMOOTHING_EVENTS), main, recent
