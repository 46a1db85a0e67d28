"""How much the items of a context count: the newer, the more."""

from __future__ import annotations

import numpy as np

from peft_adapters.ranking.counters import FloatArray
from peft_adapters.ranking.shoppers import PASSED_ITEMS


class Recency:
    """Weights `decay ** rank` of the newest so many items, scaled to sum 1.

    Args:
        decay: from one item to the one before it.
        limit: items that count at all.

    Attributes:
        table: [items that count, rank] the weights of so many items, newest first, zero behind them.
    """

    def __init__(self, decay: float, limit: int) -> None:
        self.decay, self.limit = decay, limit
        whole = (decay ** np.arange(limit)).astype(np.float32)
        self.table: FloatArray = np.tril(np.ones((limit + 1, limit), dtype=np.float32), -1) * whole
        self.table[1:] /= self.table[1:].sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)

    def of(self, items: int) -> FloatArray:
        """Weights of the newest of so many items, newest first."""
        count = min(items, self.limit)
        return self.table[count, :count]


SESSION_RECENCY, NEAR_RECENCY = Recency(0.9, 30), Recency(0.6, 6)
HISTORY_RECENCY, LAST_RECENCY = Recency(0.98, 64), Recency(1.0, 1)
PASSED_RECENCY = Recency(0.97, PASSED_ITEMS)
