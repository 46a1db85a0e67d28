"""Counter features and affinity weights of one shopper at a time, for answering: the same numbers, a tenth of the cost.

A batch of contexts goes through sparse matrices of its own. For a single one these cost far more than what is in them,
so here all counters lie in one matrix that is made once a version, and what does not depend on who asks is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from peft_adapters.counters import MATRICES, Counters, FloatArray, IntArray, SparseCounts
from peft_adapters.features import (
    FOLLOWED,
    LIFT_SCALE,
    PROBABILITY_SCALE,
    SMOOTHING_EVENTS,
    click_through,
)
from peft_adapters.recency import HISTORY_RECENCY, LAST_RECENCY, NEAR_RECENCY, PASSED_RECENCY, SESSION_RECENCY
from peft_adapters.settings import AFFINITIES, COUNTER_FEATURES
from peft_adapters.shoppers import Contexts

_PLACES = {name: COUNTER_FEATURES.index(name) for name in COUNTER_FEATURES}


class OneContext:
    """Counters of one version, ready for single contexts.

    Args:
        counters: as they stand; they are not looked at again.
        before: of the version before, whose large matrix is used again where it is the same.
    """

    def __init__(self, counters: Counters, before: OneContext | None = None) -> None:
        self._items = len(counters.events)
        parts = [counters.matrices[name] for name in MATRICES]
        self._parts = [part.parts() for part in parts]
        same = before is not None and all(own[0] is old[0] for own, old in zip(self._parts, before._parts, strict=True))
        self._main: sparse.csr_array = (
            before._main if same and before is not None else _stacked([main for main, _ in self._parts])
        )
        self._recent = _stacked([recent for _, recent in self._parts])
        self._row_sums = np.concatenate([_row_sums(part, self._items) for part in parts])
        total = np.maximum(counters.popularity.sum(axis=1, keepdims=True), 1.0)
        popular = self._items * counters.popularity / total  # [half-lives, items]
        self._root_share = np.sqrt(popular[1] / max(self._items, 1) + SMOOTHING_EVENTS / total[1, 0])
        self._standing = np.stack(
            [*np.log1p(popular), click_through(counters), (counters.events == 0).astype(np.float32)]
        ).astype(np.float32)

    def counter_features(self, contexts: Contexts, columns: IntArray | None) -> Tensor:
        """What `features.counter_features` gives for one context, [COUNTER_FEATURES, 1, candidates]."""
        items, ages = contexts.items[0], contexts.ages[0]
        count = self._items if columns is None else len(columns)
        features = np.empty((len(COUNTER_FEATURES), 1, count), dtype=np.float32)
        own = features[:, 0]
        standing = self._standing if columns is None else self._standing[:, columns]
        root_share = self._root_share if columns is None else self._root_share[columns]
        own[0:2], own[11], own[12] = standing[0:2], standing[2], standing[3]
        probability = self._probabilities(items, ages)
        own[2:7] = probability if columns is None else probability[:, columns]
        own[2:7] *= PROBABILITY_SCALE
        own[7] = self._counted(items[ages > 0], columns)
        own[8] = LIFT_SCALE * (own[_PLACES["session_cooccurrence"]] / PROBABILITY_SCALE) / root_share
        np.log1p(own[2:9], out=own[2:9])
        own[9] = np.minimum(self._counted(items[ages == 1], columns), 1.0)
        own[10] = np.minimum(self._counted(items[ages == 0], columns), 1.0)
        return torch.from_numpy(features)

    def affinity_weights(self, contexts: Contexts) -> tuple[IntArray, Tensor]:
        """Rows of the context's items, some more than once, and their weights, [AFFINITIES, 1, rows]."""
        items, ages, passed = contexts.items[0], contexts.ages[0], contexts.passed[0]
        session, history = np.flatnonzero(ages == 0), np.flatnonzero(ages > 0)
        known, shown = np.flatnonzero(ages >= 0), np.flatnonzero(passed >= 0)
        weights = np.zeros((len(AFFINITIES), 1, len(items) + len(shown)), dtype=np.float32)
        chosen = (
            (session, SESSION_RECENCY),
            (history, HISTORY_RECENCY),
            (known, LAST_RECENCY),
            (np.arange(len(items), len(items) + len(shown)), PASSED_RECENCY),
        )
        for own, (places, recency) in zip(weights[:, 0], chosen, strict=True):
            scaled = recency.of(len(places))
            own[places[: len(scaled)]] = scaled
        rows = np.concatenate([items, passed[shown]])
        used = weights.any(axis=(0, 1))
        return rows[used], torch.from_numpy(weights[:, :, used])

    def _probabilities(self, items: IntArray, ages: IntArray) -> FloatArray:
        """Smoothed conditional probabilities, [followed, items]: one product for all of them."""
        parts = {
            "last": (items[ages >= 0], LAST_RECENCY),
            "near": (items[ages == 0], NEAR_RECENCY),
            "session": (items[ages == 0], SESSION_RECENCY),
            "history": (items[ages > 0], HISTORY_RECENCY),
        }
        rows, weights, ends = [], [], [0]
        for matrix, part in FOLLOWED:
            own, recency = parts[part]
            scaled = recency.of(len(own))
            rows.append(own[: len(scaled)] + MATRICES.index(matrix) * self._items)
            weights.append(scaled)
            ends.append(ends[-1] + len(scaled))
        indices = np.concatenate(rows)
        data = np.concatenate(weights) / (self._row_sums[indices] + np.float32(SMOOTHING_EVENTS))
        # With wider indices than its own, scipy would copy the whole matrix at every product.
        places, bounds = (np.asarray(own, dtype=self._main.indices.dtype) for own in (indices, ends))
        context = sparse.csr_array((data, places, bounds), shape=(len(FOLLOWED), len(MATRICES) * self._items))
        found: FloatArray = (context @ self._main).toarray()
        if self._recent.nnz:
            found += (context @ self._recent).toarray()
        return found

    def _counted(self, items: IntArray, columns: IntArray | None) -> FloatArray:
        """How often each candidate is among some items, [candidates]."""
        if columns is None:
            return np.bincount(items, minlength=self._items).astype(np.float32)
        if not len(items) or not len(columns):
            return np.zeros(len(columns), dtype=np.float32)
        places = np.minimum(np.searchsorted(columns, items), len(columns) - 1)
        return np.bincount(places[columns[places] == items], minlength=len(columns)).astype(np.float32)


def _stacked(matrices: list[sparse.csr_array]) -> sparse.csr_array:
    """Matrices one below the other."""
    return sparse.vstack(matrices, format="csr", dtype=np.float32)


def _row_sums(part: SparseCounts, items: int) -> FloatArray:
    return part.row_sums(np.arange(items))
