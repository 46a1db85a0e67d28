"""Counter features and affinity weights of one shopper at a time, for answering: the same numbers, a tenth of the cost.

A batch of contexts goes through sparse matrices of its own. For a single one these cost far more than what is in them,
so here all counters lie in one matrix that is made once a version, and what does not depend on who asks is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from peft_adapters.counters import MATRICES, Counters, FloatArray, IntArray, SparseCounts
from peft_adapters.features import (
    FOLLOWED,
    LIFT_SCALE,
    PROBABILITY_SCALE,
    SMOOTHING_EVENTS,
    click_through,
)
from peft_adapters.recency import (
    HISTORY_RECENCY,
    LAST_RECENCY,
    NEAR_RECENCY,
    PASSED_RECENCY,
    SESSION_RECENCY,
    Recency,
)
from peft_adapters.settings import AFFINITIES, COUNTER_FEATURES
from peft_adapters.shoppers import Contexts

_PLACES = {name: COUNTER_FEATURES.index(name) for name in COUNTER_FEATURES}


class OwnItems:
    """One context's items, newest first, and those of each part of it that count, with their weights.

    Args:
        contexts: of one shopper.

    Attributes:
        items: [items] rows.
        ages: [items] in sessions, 0 is the one at hand.
        parts: by name rows and weights, as long as each other.
    """

    def __init__(self, contexts: Contexts) -> None:
        items, ages, passed = contexts.items[0], contexts.ages[0], contexts.passed[0]
        known = ages >= 0
        self.items, self.ages = (items, ages) if known.all() else (items[known], ages[known])
        session, history = self.items[self.ages == 0], self.items[self.ages > 0]
        self.parts = {
            "session": _weighted(session, SESSION_RECENCY),
            "near": _weighted(session, NEAR_RECENCY),
            "history": _weighted(history, HISTORY_RECENCY),
            "last": _weighted(self.items, LAST_RECENCY),
            "passed": _weighted(passed[passed >= 0], PASSED_RECENCY),
        }

    def affinity_weights(self) -> tuple[IntArray, FloatArray]:
        """Rows of the items, some more than once, those of the session first; weights [AFFINITIES, rows]."""
        parts = [self.parts[name] for name in ("session", "history", "last", "passed")]
        rows = np.concatenate([own for own, _ in parts])
        weights, start = np.zeros((len(AFFINITIES), len(rows)), dtype=np.float32), 0
        for own, (_, scaled) in zip(weights, parts, strict=True):
            own[start : start + len(scaled)] = scaled
            start += len(scaled)
        return rows, weights


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
        root_share = np.sqrt(popular[1] / max(self._items, 1) + SMOOTHING_EVENTS / total[1, 0])
        self._standing = np.stack(
            [*np.log1p(popular), click_through(counters), (counters.events == 0).astype(np.float32), root_share]
        ).astype(np.float32)

    def counter_features(self, context: OwnItems, columns: IntArray | None) -> FloatArray:
        """What `features.counter_features` gives for one context, [COUNTER_FEATURES, candidates]."""
        count = self._items if columns is None else len(columns)
        own = np.empty((len(COUNTER_FEATURES), count), dtype=np.float32)
        standing = self._standing if columns is None else self._standing[:, columns]
        own[0:2], own[11:13] = standing[0:2], standing[2:4]
        probability = self._probabilities(context)
        own[2:7] = probability if columns is None else probability[:, columns]
        own[2:7] *= PROBABILITY_SCALE
        place, age = _places(context, columns)
        own[7] = np.bincount(place[age > 0], minlength=count)
        own[8] = LIFT_SCALE * (own[_PLACES["session_cooccurrence"]] / PROBABILITY_SCALE) / standing[4]
        torch.from_numpy(own[2:9]).log1p_()  # numpy takes four times as long over a whole catalogue
        own[9:11] = 0.0
        own[9][place[age == 1]] = 1.0
        own[10][place[age == 0]] = 1.0
        return own

    def _probabilities(self, context: OwnItems) -> FloatArray:
        """Smoothed conditional probabilities, [followed, items]: one product for all of them."""
        rows, weights, ends = [], [], [0]
        for matrix, part in FOLLOWED:
            own, scaled = context.parts[part]
            rows.append(own + MATRICES.index(matrix) * self._items)
            weights.append(scaled)
            ends.append(ends[-1] + len(own))
        indices = np.concatenate(rows)
        data = np.concatenate(weights) / (self._row_sums[indices] + np.float32(SMOOTHING_EVENTS))
        # With wider indices than its own, scipy would copy the whole matrix at every product.
        places, bounds = (np.asarray(own, dtype=self._main.indices.dtype) for own in (indices, ends))
        context_rows = sparse.csr_array((data, places, bounds), shape=(len(FOLLOWED), len(MATRICES) * self._items))
        found: FloatArray = (context_rows @ self._main).toarray()
        if self._recent.nnz:
            found += (context_rows @ self._recent).toarray()
        return found


def _places(context: OwnItems, columns: IntArray | None) -> tuple[IntArray, IntArray]:
    """Where among the candidates the items of a context are, and their ages; those that are none are left out."""
    items, ages = context.items, context.ages
    if columns is None:
        return items, ages
    if not len(columns):
        return items[:0], ages[:0]
    places = np.minimum(np.searchsorted(columns, items), len(columns) - 1)
    found = columns[places] == items
    return places[found], ages[found]


def _weighted(items: IntArray, recency: Recency) -> tuple[IntArray, FloatArray]:
    scaled = recency.of(len(items))
    return items[: len(scaled)], scaled


def _stacked(matrices: list[sparse.csr_array]) -> sparse.csr_array:
    """Matrices one below the other."""
    return sparse.vstack(matrices, format="csr", dtype=np.float32)


def _row_sums(part: SparseCounts, items: int) -> FloatArray:
    return part.row_sums(np.arange(items))
