"""Vectors of what shoppers had searched for, while a learner learns from it.

Their frozen activations are kept in memory alone: what shoppers type is no text of the catalogue, and is not put on the
disk. The vector of a query depends on nothing but the query, the adapter and what else is in the batch, so that a
learner that was killed and started again computes the same ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder

KEPT_QUERIES = 4_096

Suffix = Callable[[Sequence[Tensor]], Tensor]


class Queries:
    """Unit vectors of searches in words.

    Args:
        encoder: whose frozen part they go through.
        kept: how many queries' activations are kept, those seen last.
    """

    def __init__(self, encoder: Encoder, *, kept: int = KEPT_QUERIES) -> None:
        self._encoder, self._kept = encoder, kept
        self._hidden: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """Queries kept."""
        return len(self._hidden)

    def vectors(self, queries: Sequence[str | None], suffix: Suffix) -> Tensor | None:
        """Vectors [queries, dim] under an adapter, zero where a query is None; None where all are."""
        distinct = sorted({query for query in queries if query is not None})
        if not distinct:
            return None
        own = torch.nn.functional.normalize(suffix(self._activations(distinct)), dim=1)
        blank = torch.zeros(1, own.shape[1])
        place = {query: index for index, query in enumerate(distinct)}
        index = torch.tensor([len(distinct) if query is None else place[query] for query in queries])
        return torch.cat([own, blank])[index]

    def _activations(self, distinct: Sequence[str]) -> list[Tensor]:
        missing = [query for query in distinct if query not in self._hidden]
        hidden = {query: self._hidden[query] for query in distinct if query in self._hidden}
        hidden |= zip(missing, self._encoder.prefix(missing), strict=True)
        for query in distinct:
            self._hidden[query] = hidden[query]
            self._hidden.move_to_end(query)
        while len(self._hidden) > self._kept:
            self._hidden.popitem(last=False)
        return [hidden[query] for query in distinct]

    def clear(self) -> None:
        """Keep nothing."""
        self._hidden.clear()
