"""Counter features of candidates, computed from frozen counters by compiled loops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import counter_kernels
from peft_adapters.ranking.counters import Counters, FloatArray, IntArray, SparseCounts
from peft_adapters.ranking.features import SMOOTHING_EVENTS, click_through
from peft_adapters.ranking.recency import HISTORY_RECENCY, NEAR_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES

_MATRICES = ("transition", "skip_transition", "cooccurrence", "neighbour")
_RECENCY = tuple(recency.table for recency in (SESSION_RECENCY, NEAR_RECENCY, HISTORY_RECENCY))


class CounterFeatures:
    """Counter features of a snapshot of counters, with the parts that do not depend on the context precomputed.

    Args:
        counters: counters to take the snapshot of.
    """

    def __init__(self, counters: Counters) -> None:
        self._items = len(counters.events)
        self._counts = tuple(kernel_counts(counters.matrices[name]) for name in _MATRICES)
        total = np.maximum(counters.popularity.sum(axis=1, keepdims=True), 1.0)
        popular = self._items * counters.popularity / total  # [half-lives, items] over uniform chance
        root_share = np.sqrt(popular[1] / max(self._items, 1) + SMOOTHING_EVENTS / total[1, 0])
        never_sold = counters.events == 0
        self._static_features: FloatArray = np.stack(
            [*np.log1p(popular), click_through(counters), never_sold, root_share]
        ).astype(np.float32)

    def features(self, contexts: Contexts, columns: IntArray | None) -> Tensor:
        """Return features [COUNTER_FEATURES, contexts, candidates].

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] distinct rows of the candidates; None is the whole catalogue.

        Raises:
            IndexError: a row is beyond the counted items.
        """
        columns = np.arange(self._items) if columns is None else columns
        features = np.empty((len(COUNTER_FEATURES), len(contexts), len(columns)), dtype=np.float32)
        self.fill(contexts, columns, features)
        return torch.from_numpy(features)

    def fill(self, contexts: Contexts, columns: IntArray, out: FloatArray) -> None:
        """Write features to an existing array.

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] distinct rows of the candidates.
            out: [COUNTER_FEATURES, contexts, candidates] array to fill.

        Raises:
            IndexError: a row is beyond the counted items; compiled loops do not check bounds.
        """
        largest = counter_kernels.counter_features(
            contexts.items,
            contexts.ages,
            contexts.passed,
            self._counts,
            _RECENCY,
            self._static_features,
            columns,
            out,
        )
        if largest >= self._items:
            raise IndexError(f"rows must be below {self._items}, the number of counted items, got {largest}")


def kernel_counts(counts: SparseCounts) -> tuple[FloatArray, tuple[object, ...], tuple[object, ...]]:
    """Return counts in the form that `counter_kernels.add_probabilities` takes."""
    main, recent = ((part.indptr, part.indices, part.data) for part in counts.parts())
    return counts.row_sums + np.float32(SMOOTHING_EVENTS), main, recent
