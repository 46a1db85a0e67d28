"""Recency weights of a context's items."""

from __future__ import annotations

import numpy as np

from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.shoppers import PASSED_ITEMS


class Recency:
    """Weights `decay ** rank` of the newest items of a context, scaled to sum 1.

    Args:
        decay: ratio of an item's weight to that of the next newer item.
        limit: largest number of items with a weight.

    Attributes:
        table: [limit + 1, limit] weights for each number of items, newest first, padded with zeros.
    """

    def __init__(self, decay: float, limit: int) -> None:
        self.decay, self.limit = decay, limit
        unscaled = (decay ** np.arange(limit)).astype(np.float32)
        self.table: FloatArray = np.tril(np.ones((limit + 1, limit), dtype=np.float32), -1) * unscaled
        self.table[1:] /= self.table[1:].sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)


SESSION_RECENCY, NEAR_RECENCY = Recency(0.9, 30), Recency(0.6, 6)
HISTORY_RECENCY, LAST_RECENCY = Recency(0.98, 64), Recency(1.0, 1)
PASSED_RECENCY = Recency(0.97, PASSED_ITEMS)
