"""The few best of many, and one order from several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peft_adapters.ranking.counters import FloatArray, IntArray

_RANK_OFFSET = 60  # of the paper: how little the first places stand out


def top_k(scores: FloatArray, count: int) -> IntArray:
    """Places of the highest scores, the highest first; of equal ones the earlier first. Never one of minus infinity.

    >>> top_k(np.array([0.5, -np.inf, 2.0, 2.0], dtype=np.float32), 3)
    array([2, 3, 0])
    """
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    reached = np.flatnonzero(scores >= threshold)
    places: IntArray = reached[np.argsort(-scores[reached], kind="stable")][:count]
    return places


def reciprocal_rank_fusion(orders: Sequence[IntArray], weights: Sequence[float], size: int) -> FloatArray:
    """Reciprocal rank fusion (Cormack, Clarke & Buettcher 2009): a score for each place, minus infinity for none.

    Args:
        orders: Places in order, the best first.
        weights: How much each order counts.
        size: Places there are.
    """
    scores = np.zeros(size, dtype=np.float32)
    found = np.zeros(size, dtype=np.bool_)
    for order, weight in zip(orders, weights, strict=True):
        scores[order] += (weight / (_RANK_OFFSET + 1 + np.arange(len(order)))).astype(np.float32)
        found[order] = True
    return np.where(found, scores, -np.inf).astype(np.float32)
