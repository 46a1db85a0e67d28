"""The indexes that search finds candidates in, made of the served model's items beside the serving."""

from collections.abc import Callable

import numpy as np

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.counters import FloatArray, IntArray
from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.serving.neighbours import NeighbourIndex
from peft_adapters.serving.served_model import ServedModel

Served = Callable[[], ServedModel | None]
_NEW_SHARE = 50  # a graph is made anew once one in so many items is not in it


class Lexicon:
    """Indexes the words of the items that the served model has texts of.

    Args:
        served: Gives the model that is served; None before there is one.

    Attributes:
        words: The newest index, by rows of the worker's catalogue; None before the first is made.
    """

    def __init__(self, served: Served) -> None:
        self.words: LexicalIndex | None = None
        self._served = served
        self._seen: ServedModel | None = None
        self._texts: list[str] | None = None  # [rows of the worker's catalogue] that the index was made from

    def refresh(self) -> None:
        """Make the index anew if the texts of the served model's items are others than before."""
        model = self._served()
        if model is None or model is self._seen:
            return
        self._seen = model
        texts = [""] * len(model.row_of)
        for row, text in zip(model.catalogue_rows.tolist(), model.texts, strict=True):
            if text is not None:
                texts[row] = text
        if texts != self._texts:
            self.words, self._texts = LexicalIndex(texts), texts

    def scores(self, query: str, model: ServedModel) -> FloatArray:
        """BM25 of each row of a model, [items]; 0 of what is not indexed yet."""
        scores = np.zeros(len(model), dtype=np.float32)
        index = self.words
        if index is not None:
            known = min(len(index), len(model.row_of))  # items may have come since either was made
            scores[model.row_of[:known]] = index.scores(query)[:known]
        return scores


class NearItems:
    """Finds what to look at among very many items.

    Args:
        served: Gives the model that is served; None before there is one.
        above_items: Smaller catalogues are looked at as a whole.
    """

    def __init__(self, served: Served, *, above_items: int) -> None:
        self._served, self._above_items = served, above_items
        self._graph: NeighbourIndex | None = None

    def refresh(self) -> None:
        """Make the graph anew if there is none, its adapter is no longer served, or many items are not in it."""
        model = self._served()
        if model is None or len(model.row_of) <= self._above_items:
            return
        graph = self._graph
        if (
            graph is None
            or graph.adapter is not model.suffix
            or len(model.row_of) - graph.rows > graph.rows // _NEW_SHARE
        ):
            self._graph = NeighbourIndex(model)

    def among(self, query: str, queries: QueryEncoder, rows: IntArray, count: int, model: ServedModel) -> IntArray:
        """Those of a model's rows to look at for a query: some near ones and what is too new, or all, if they are few.

        Args:
            query: In words.
            queries: Encodes it.
            rows: That may be answered, sorted.
            count: How many near ones.
            model: Whose rows they are.
        """
        graph = self._graph
        if graph is None or len(rows) <= self._above_items:
            return rows
        near = graph.search(query, queries, count)
        newer = model.row_of[min(graph.rows, len(model.row_of)) :]
        found = np.concatenate([model.row_of[near[near < len(model.row_of)]], newer])
        return np.intersect1d(found, rows)
