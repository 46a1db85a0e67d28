"""Approximate nearest-neighbour search over text vectors, with an HNSW graph (Malkov & Yashunin 2018) of usearch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.serving.served_model import ServedModel


class NeighbourIndex:
    """An index of one served model's text vectors; it finds candidates, which are then scored exactly.

    Building the graph of a large catalogue takes minutes, and every LoRA step moves every vector. The index is
    therefore kept while newer adapters are served, and searched with the query encoded under the index's own adapter,
    so that query and items are of one version.

    Args:
        model: the model whose texts are indexed; items that are added later are not in the index.

    Attributes:
        rows: number of rows that the worker's catalogue had; the caller scores later rows itself.
        adapter: encoder suffix with the adapter that the vectors were made under.
    """

    def __init__(self, model: ServedModel) -> None:
        from usearch.index import Index  # an extra: only large catalogues need it

        items = np.flatnonzero(model.has_text)
        self.rows, self.adapter = len(model.row_of), model.suffix
        self._index = Index(ndim=model.text_vectors.shape[1], metric="cos", dtype="i8")
        vectors = model.text_vectors[items]
        self._index.add(model.catalogue_rows[items], vectors, threads=1)

    def search(self, query: str, encode_query: QueryEncoder, count: int) -> IntArray:
        """Return the catalogue rows of the texts nearest to a query, in no particular order.

        Args:
            query: the search query in words.
            encode_query: encodes the query under the index's adapter.
            count: number of rows to return.
        """
        vector: Tensor = encode_query(query, self.adapter)
        rows: IntArray = self._index.search(vector.numpy(), count, threads=1).keys.astype(np.int64)
        return rows


def usearch_is_installed() -> bool:
    """Return whether the extra `ann` is installed."""
    try:
        import usearch.index  # noqa: F401
    except ImportError:
        return False
    return True
