"""Inputs that only the second stage uses: too costly for the whole catalogue, computed for a few hundred candidates.

A feature is added in three lines: its name in `settings.SECOND_STAGE_FEATURES`, what it reads in `_static` below (or in
`Contexts`), and its loop in `second_stage_kernels.second_stage_features`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import counter_kernels, second_stage_kernels
from peft_adapters.ranking.counters import Counters, FloatArray, IntArray
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import SECOND_STAGE_FEATURES


class SecondStageFeatures:
    """Second-stage features over a snapshot of counters.

    Args:
        counters: counters to take the snapshot of.
    """

    def __init__(self, counters: Counters) -> None:
        self._static: FloatArray = np.log1p(counters.events)[None].astype(np.float32)

    def features(self, contexts: Contexts, rows: IntArray) -> Tensor:
        """Return features [SECOND_STAGE_FEATURES, contexts, candidates].

        Args:
            contexts: recent items of the shoppers.
            rows: [contexts, candidates] rows of each context's candidates.

        Raises:
            IndexError: a row is beyond the counted items; compiled loops do not check bounds.
        """
        largest, items = counter_kernels.max_row(contexts.items, contexts.passed, rows.ravel()), self._static.shape[1]
        if largest >= items:
            raise IndexError(f"rows must be below {items}, the number of counted items, got {largest}")
        out = np.empty((len(SECOND_STAGE_FEATURES), *rows.shape), dtype=np.float32)
        second_stage_kernels.second_stage_features(contexts.items, contexts.ages, self._static, rows, out)
        return torch.from_numpy(out)
