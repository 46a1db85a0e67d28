"""Vectors of search queries while a learner learns from them.

Frozen activations of queries are kept in memory only: queries are personal data, unlike the catalogue's texts, and are
not written to disk. A query's vector depends on the query, the adapter and the rest of its batch alone, so a restarted
learner computes the same one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder

KEPT_QUERIES = 4_096

Suffix = Callable[[Sequence[Tensor]], Tensor]


class QueryVectorCache:
    """Unit vectors of search queries, with a cache of their frozen activations.

    Args:
        encoder: encoder whose frozen layers the queries pass.
        kept: number of queries whose activations are kept, the most recent ones.
    """

    def __init__(self, encoder: Encoder, *, kept: int = KEPT_QUERIES) -> None:
        self._encoder, self._kept = encoder, kept
        self._hidden: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of queries kept."""
        return len(self._hidden)

    def vectors(self, queries: Sequence[str | None], suffix: Suffix) -> Tensor | None:
        """Return vectors [queries, dim] under an adapter, zero for a query that is None; None if all are None.

        Args:
            queries: search queries; None for an event without one.
            suffix: the encoder's last layers with the adapter.
        """
        distinct = sorted({query for query in queries if query is not None})
        if not distinct:
            return None
        vectors = self.of_distinct(distinct, suffix)
        zero = torch.zeros(1, vectors.shape[1])
        place = {query: index for index, query in enumerate(distinct)}
        index = torch.tensor([len(distinct) if query is None else place[query] for query in queries])
        return torch.cat([vectors, zero])[index]

    def of_distinct(self, distinct: Sequence[str], suffix: Suffix) -> Tensor:
        """Return unit vectors [queries, dim] of distinct queries, with gradients to LoRA if the suffix has any."""
        return torch.nn.functional.normalize(suffix(self._activations(distinct)), dim=1)

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
        """Discard all activations."""
        self._hidden.clear()
