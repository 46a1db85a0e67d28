"""Selection of the best scores, and fusion of several rankings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peft_adapters.ranking.arrays import FloatArray, IntArray

_RANK_OFFSET = 60  # the paper's constant; larger values weigh the first ranks less


def top_k(scores: FloatArray, count: int) -> IntArray:
    """Return the positions of the highest scores [n], highest first and ties in order; never one of minus infinity.

    >>> top_k(np.array([0.5, -np.inf, 2.0, 2.0], dtype=np.float32), 3)
    array([2, 3, 0])
    """
    count = min(count, int(np.isfinite(scores).sum()))
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    selected = np.flatnonzero(scores >= threshold)
    positions: IntArray = selected[np.argsort(-scores[selected], kind="stable")][:count]
    return positions


def reciprocal_rank_fusion(orders: Sequence[IntArray], weights: Sequence[float], size: int) -> FloatArray:
    """Return scores [size] by reciprocal rank fusion (Cormack, Clarke & Buettcher 2009); minus infinity if unranked.

    Args:
        orders: rankings [ranked] of positions, best first.
        weights: weight of each ranking.
        size: number of positions.
    """
    scores = np.zeros(size, dtype=np.float32)
    ranked = np.zeros(size, dtype=np.bool_)
    for order, weight in zip(orders, weights, strict=True):
        scores[order] += (weight / (_RANK_OFFSET + 1 + np.arange(len(order)))).astype(np.float32)
        ranked[order] = True
    return np.where(ranked, scores, -np.inf).astype(np.float32)
