"""Diverse lists by maximal marginal relevance (Carbonell and Goldstein 1998)."""

import numpy as np

from peft_adapters.ranking.arrays import FloatArray, IntArray

POOL_PER_PLACE = 5  # candidates considered for each place of a list
SMALLEST_POOL = 100


def pool_size(places: int) -> int:
    """Return the number of best candidates to consider for a list of some places."""
    return max(SMALLEST_POOL, POOL_PER_PLACE * places)


def diversified(relevance: FloatArray, vectors: FloatArray, *, diversity: float, places: int) -> IntArray:
    """Return an order in which each next item is both relevant and unlike the items before it.

    An item's worth is `(1 - diversity) * relevance - diversity * similarity`: relevance is scaled from 0 for the worst
    item to 1 for the best, similarity is the cosine to the nearest item before it.

    Args:
        relevance: relevance of each item, best first, [items].
        vectors: unit vector of each item, [items, dim].
        diversity: weight of diversity, 0 to 1.
        places: number of places to diversify; the rest follow by relevance.

    >>> twins = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    >>> diversified(np.array([3.0, 2.9, 2.0], dtype=np.float32), twins, diversity=0.6, places=3).tolist()
    [0, 2, 1]
    """
    if not len(relevance):
        return np.zeros(0, dtype=np.int64)
    span = float(relevance[0] - relevance[-1]) or 1.0
    worth = (1 - diversity) * (relevance - relevance[-1]) / span
    similarity = np.full(len(relevance), -1.0)
    chosen = [0]
    worth[0] = -np.inf
    while len(chosen) < min(places, len(relevance)):
        np.maximum(similarity, vectors @ vectors[chosen[-1]], out=similarity)
        chosen.append(int(np.argmax(worth - diversity * similarity)))
        worth[chosen[-1]] = -np.inf
    rest = np.setdiff1d(np.arange(len(relevance)), chosen)
    return np.concatenate([np.array(chosen, dtype=np.int64), rest])
