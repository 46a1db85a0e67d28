"""Text vectors under the next adapter, computed in steps while the current adapter is served.

Encoding a catalogue under a new adapter takes seconds, and all its vectors must exist before the first is used, because
a row is never scored against a query of another version. Learner and workers compute them in advance, so that an
adapter swap delays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.ranking.catalogue import Catalogue


@dataclass(slots=True)
class NextAdapterVectors:
    """Vectors of a catalogue's first rows under the next adapter.

    Attributes:
        lora: weights of the adapter under PEFT's names.
        suffix: suffix with the adapter merged into it.
        texts: texts of the rows that have a vector, in the catalogue's order.
        vectors: [rows, dim] unit vectors, valid for the first `len(texts)` rows.
    """

    lora: Mapping[str, Tensor]
    suffix: MergedSuffix
    texts: list[str] = field(default_factory=list)
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def advance(self, catalogue: Catalogue, max_items: int) -> bool:
        """Compute the vectors of further rows, and return whether all rows have one.

        Args:
            catalogue: the catalogue, which may have grown since the last call.
            max_items: largest number of vectors to compute, at least 1.
        """
        done = len(self.texts)
        rows = range(done, min(done + max_items, len(catalogue)))
        if len(rows):
            computed = catalogue.vectors(self.suffix, rows)
            self._reserve(len(catalogue), computed.shape[1])
            self.vectors[rows.start : rows.stop] = computed
            self.texts += catalogue.texts[rows.start : rows.stop]
        return len(self.texts) == len(catalogue)

    def refresh(self, catalogue: Catalogue, rows: Sequence[int]) -> None:
        """Recompute the existing vectors of `rows`, whose texts have changed."""
        outdated = [row for row in rows if row < len(self.texts)]
        if outdated:
            self.vectors[outdated] = catalogue.vectors(self.suffix, outdated)
            for row in outdated:
                self.texts[row] = catalogue.texts[row]

    def _reserve(self, rows: int, dim: int) -> None:
        """Grow the table of vectors by at least a quarter if it has fewer than `rows` rows."""
        if len(self.vectors) < rows:
            grown, done = torch.zeros(max(rows, len(self.vectors) * 5 // 4), dim), len(self.texts)
            if done:
                grown[:done] = self.vectors[:done]
            self.vectors = grown
