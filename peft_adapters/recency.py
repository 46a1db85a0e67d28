"""How much the items of a context count: the newer, the more."""

from __future__ import annotations

import numpy as np

from peft_adapters.counters import FloatArray
from peft_adapters.shoppers import PASSED_ITEMS


class Recency:
    """Weights `decay ** rank` of the newest so many items, scaled to sum 1.

    Args:
        decay: from one item to the one before it.
        limit: items that count at all.
    """

    def __init__(self, decay: float, limit: int) -> None:
        self.decay, self.limit = decay, limit
        whole = (decay ** np.arange(limit)).astype(np.float32)
        self._scaled = [whole[:0]] + [
            whole[:n] / np.float32(whole[:n].sum(dtype=np.float64)) for n in range(1, limit + 1)
        ]

    def of(self, items: int) -> FloatArray:
        """Weights of the newest of so many items, newest first."""
        scaled: FloatArray = self._scaled[min(items, self.limit)]
        return scaled


SESSION_RECENCY, NEAR_RECENCY = Recency(0.9, 30), Recency(0.6, 6)
HISTORY_RECENCY, LAST_RECENCY = Recency(0.98, 64), Recency(1.0, 1)
PASSED_RECENCY = Recency(0.97, PASSED_ITEMS)
