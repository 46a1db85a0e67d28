"""Indexes of the served items, in which search finds candidates."""

import numpy as np

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.serving.neighbours import NeighbourIndex
from peft_adapters.serving.served_model import ServedModel
from services.scorer.serving_table import ServingTable

_NEW_SHARE = 50  # the graph is rebuilt once one in 50 items is not in it


class Lexicon:
    """Index of the words of the served items.

    Args:
        table: the models that are served; the default scenario's is indexed.

    Attributes:
        words: the newest index, by rows of the worker's catalogue; None until it is first built.
    """

    def __init__(self, table: ServingTable) -> None:
        self.words: LexicalIndex | None = None
        self._table = table
        self._indexed: ServedModel | None = None
        self._texts: list[str] | None = None  # [rows of the worker's catalogue] of the index

    def refresh(self) -> None:
        """Rebuild the index if the texts of the served items have changed."""
        model = self._table.model
        if model is None or model is self._indexed:
            return
        self._indexed = model
        texts = [""] * len(model.row_of)
        for row, text in zip(model.catalogue_rows.tolist(), model.texts, strict=True):
            if text is not None:
                texts[row] = text
        if texts != self._texts:
            self.words, self._texts = LexicalIndex(texts), texts

    def scores(self, query: str, model: ServedModel) -> FloatArray:
        """Return the BM25 score of each row of a model, [items]; 0 for items that are not indexed yet."""
        scores = np.zeros(len(model), dtype=np.float32)
        index = self.words
        if index is not None:
            known = min(len(index), len(model.row_of))  # items may have arrived since either was built
            scores[model.row_of[:known]] = index.scores(query)[:known]
        return scores


class NearItems:
    """Graph of near items, which narrows a large catalogue down to candidates.

    Args:
        table: the models that are served; the default scenario's is indexed.
        above_items: the size up to which a catalogue is scored as a whole.
    """

    def __init__(self, table: ServingTable, *, above_items: int) -> None:
        self._table, self._above_items = table, above_items
        self._graph: NeighbourIndex | None = None

    def refresh(self) -> None:
        """Rebuild the graph if there is none, its adapter is no longer served, or it lacks many items."""
        model = self._table.model
        if model is None or len(model.row_of) <= self._above_items:
            return
        graph = self._graph
        if (
            graph is None
            or graph.adapter is not model.suffix
            or len(model.row_of) - graph.rows > graph.rows // _NEW_SHARE
        ):
            self._graph = NeighbourIndex(model)

    def candidates(self, query: str, queries: QueryEncoder, rows: IntArray, count: int, model: ServedModel) -> IntArray:
        """Return the rows to score for a query: near ones and those too new for the graph, or all if they are few.

        Args:
            query: the query in words.
            queries: encodes the query.
            rows: the rows that may be in the answer, sorted.
            count: the number of near rows to find.
            model: the model whose rows are meant.
        """
        graph = self._graph
        if graph is None or len(rows) <= self._above_items:
            return rows
        near = graph.search(query, queries, count)
        newer = model.row_of[min(graph.rows, len(model.row_of)) :]
        candidates = np.concatenate([model.row_of[near[near < len(model.row_of)]], newer])
        return np.intersect1d(candidates, rows)
