"""Near texts among many, without looking at each: a graph of neighbours (HNSW, Malkov & Yashunin 2018), by usearch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.counters import IntArray
from peft_adapters.serving.served_model import ServedModel


class Neighbours:
    """The items of one served model by their texts, to find candidates in that are then looked at exactly.

    A graph takes minutes to make of a large catalogue, and every step of LoRA moves every vector. So it is kept while
    newer adapters are served, and asked with the query under its own adapter: rows and queries are of one version.

    Args:
        model: Whose texts; what comes later is not in here.

    Attributes:
        rows: How many rows of the worker's catalogue there were: later ones are for the caller to look at.
        adapter: What its texts are under.
    """

    def __init__(self, model: ServedModel) -> None:
        from usearch.index import Index  # an extra: only large catalogues need it

        kept = np.flatnonzero(model.has_text)
        self.rows, self.adapter = len(model.row_of), model.suffix
        self._index = Index(ndim=model.text.shape[1], metric="cos", dtype="i8")
        self._index.add(model.catalogue_rows[kept], model.text[torch.from_numpy(kept)].numpy(), threads=1)

    def near(self, query: str, queries: QueryEncoder, count: int) -> IntArray:
        """Rows of the worker's catalogue whose texts are near a query's, in no order that means anything."""
        vector: Tensor = queries(query, self.adapter)
        rows: IntArray = self._index.search(vector.numpy(), count, threads=1).keys.astype(np.int64)
        return rows


def installed() -> bool:
    """Whether the extra `ann` is there."""
    try:
        import usearch.index  # noqa: F401
    except ImportError:
        return False
    return True
