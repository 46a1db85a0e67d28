"""Text vectors of the adapter that comes next, made a few at a time while another is served.

A catalogue's vectors take seconds under a new adapter, and all must be there before the first is used: a row is never
scored against a query of another version. Made ahead, by whoever learns and by whoever serves, they hold nobody up.
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
    """How far the vectors of a catalogue are under the adapter that comes next.

    Attributes:
        lora: the adapter under PEFT's names.
        suffix: computes texts under it.
        texts: [done] what the vectors were made of; row n is the catalogue's.
        vectors: [rows, dim] unit vectors; those of the first `done` rows are made.
    """

    lora: Mapping[str, Tensor]
    suffix: MergedSuffix
    texts: list[str] = field(default_factory=list)
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def advance(self, catalogue: Catalogue, most: int) -> bool:
        """Make up to `most` more; whether all are made now.

        Args:
            catalogue: its items, of which more may have come.
            most: at least 1.
        """
        done = len(self.texts)
        rows = range(done, min(done + most, len(catalogue)))
        if len(rows):
            made = catalogue.vectors(self.suffix, rows)
            self._make_room(len(catalogue), made.shape[1])
            self.vectors[rows.start : rows.stop] = made
            self.texts += catalogue.texts[rows.start : rows.stop]
        return len(self.texts) == len(catalogue)

    def refresh(self, catalogue: Catalogue, rows: Sequence[int]) -> None:
        """Make those of `rows` again that are made already: their texts have changed."""
        again = [row for row in rows if row < len(self.texts)]
        if again:
            self.vectors[again] = catalogue.vectors(self.suffix, again)
            for row in again:
                self.texts[row] = catalogue.texts[row]

    def _make_room(self, rows: int, dim: int) -> None:
        if len(self.vectors) < rows:
            grown, done = torch.zeros(max(rows, len(self.vectors) * 5 // 4), dim), len(self.texts)
            if done:
                grown[:done] = self.vectors[:done]
            self.vectors = grown
