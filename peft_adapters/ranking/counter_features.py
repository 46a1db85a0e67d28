"""Counter features of candidates, computed from frozen counters by compiled loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from peft_adapters.ranking import counter_kernels
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counter_kernels import SMOOTHING_EVENTS
from peft_adapters.ranking.item_rates import click_through
from peft_adapters.ranking.recency import HISTORY_RECENCY, NEAR_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES

if TYPE_CHECKING:
    from peft_adapters.ranking.counters import Counters, SparseCounts

MATRICES = ("transition", "skip_transition", "cooccurrence", "neighbour")
_RECENCY = tuple(recency.table for recency in (SESSION_RECENCY, NEAR_RECENCY, HISTORY_RECENCY))


@dataclass(frozen=True, slots=True)
class CounterFeatures:
    """Counter features of a snapshot of counters, with the parts that do not depend on the context precomputed.

    Attributes:
        counts: for each of `MATRICES`, what `kernel_counts` returns.
        static_features: [static features, items] features that do not depend on the context.
    """

    counts: tuple[object, ...]
    static_features: FloatArray

    @classmethod
    def of(cls, counters: Counters) -> Self:
        """Return the features of a snapshot of counters."""
        items = len(counters.events)
        total = np.maximum(counters.popularity.sum(axis=1, keepdims=True), 1.0)
        popular = items * counters.popularity / total  # [half-lives, items] over uniform chance
        root_share = np.sqrt(popular[1] / max(items, 1) + SMOOTHING_EVENTS / total[1, 0])
        static_features = np.stack(
            [*np.log1p(popular), click_through(counters), counters.events == 0, root_share]
        ).astype(np.float32)
        return cls(tuple(kernel_counts(counters.matrices[name]) for name in MATRICES), static_features)

    def features(self, contexts: Contexts, columns: IntArray | None) -> FloatArray:
        """Return features [COUNTER_FEATURES, contexts, candidates].

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] distinct rows of the candidates; None is the whole catalogue.

        Raises:
            IndexError: a row is beyond the counted items.
        """
        columns = np.arange(self.static_features.shape[1]) if columns is None else columns
        features = np.empty((len(COUNTER_FEATURES), len(contexts), len(columns)), dtype=np.float32)
        self.fill(contexts, columns, features)
        return features

    def fill(self, contexts: Contexts, columns: IntArray, out: FloatArray) -> None:
        """Write features to an existing array.

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] distinct rows of the candidates.
            out: [COUNTER_FEATURES, contexts, candidates] array to fill.

        Raises:
            IndexError: a row is beyond the counted items; compiled loops do not check bounds.
        """
        items = self.static_features.shape[1]
        largest = counter_kernels.counter_features(
            contexts.items,
            contexts.ages,
            contexts.passed,
            self.counts,
            _RECENCY,
            self.static_features,
            columns,
            out,
        )
        if largest >= items:
            raise IndexError(f"rows must be below {items}, the number of counted items, got {largest}")


def kernel_counts(counts: SparseCounts) -> tuple[FloatArray, tuple[object, ...], tuple[object, ...]]:
    """Return counts in the form that `counter_kernels.add_probabilities` takes."""
    main, recent = ((part.indptr, part.indices, part.data) for part in counts.parts())
    return counts.row_sums + np.float32(SMOOTHING_EVENTS), main, recent
