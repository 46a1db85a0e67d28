"""Items for a query in words: by meaning and by words, then in the order of the shopper who asks."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.counters import FloatArray, IntArray
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.serving.neighbours import usearch_is_installed
from peft_adapters.serving.served_model import ServedModel
from services.scorer.answers import Answers, rows_of, spread
from services.scorer.diversity import pool_size
from services.scorer.filters import Filters
from services.scorer.lexicon import Lexicon, NearItems
from services.scorer.refresher import Refresher
from services.scorer.requests import ListRequest
from services.scorer.search_requests import AnswerRequest, SearchRequest
from services.settings.search import SearchSettings

_NOTHING = np.zeros(0, dtype=np.float32)
_ANSWERS = ListRequest(filters=Filters(kinds=("answer",)))
_ALIKE = (1.0, 1.0)  # meaning and words
_LOOKED_AT = 4  # near items of a graph that are looked at exactly, for each that is wanted
_CONFIDENCE_SLOPE = 10.0  # a cosine higher by 0.1 makes it e times as likely; measured, see docs/search.md


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of a model in order, the best first.

    Attributes:
        rows: [found].
        scores: [found] what they are in order by.
        similarity: [found] cosine of query and text.
        words: [found] BM25, 0 where an item has none of the query's words.
        probabilities: by outcome [found], of each item were it shown; empty where no list was learnt.
    """

    rows: IntArray
    scores: FloatArray
    similarity: FloatArray
    words: FloatArray
    probabilities: dict[str, FloatArray]


class Search:
    """Answers queries in words from the one model that was served when a query came.

    Args:
        queries: Encodes them.
        answers: Knows who asks, what may be answered, and what is served.
        settings: How many items are looked at.

    Attributes:
        lexicon: Knows the words of items; before its first index queries are answered by meaning alone.
        near: Finds what to look at in large catalogues.
        min_confidence: An answer below it is none.
    """

    def __init__(self, queries: QueryEncoder, answers: Answers, settings: SearchSettings) -> None:
        self.lexicon = Lexicon(lambda: answers.model)
        self.near = NearItems(lambda: answers.model, above_items=settings.graph_above_items)
        self.min_confidence = settings.min_confidence
        self._queries, self._answers, self._settings = queries, answers, settings
        answers.encode_query = queries  # candidates that are given are ranked for words, too

    def refreshers(self) -> list[Refresher]:
        """What is to be run beside."""
        own = [Refresher("words", self.lexicon.refresh)]
        return [*own, Refresher("graph", self.near.refresh)] if usearch_is_installed() else own

    def search(self, request: SearchRequest, model: ServedModel) -> Found:
        """The `k` items that fit a query and the shopper best."""
        allowed = self._answers.offered(request, model, besides=rows_of(request.exclude, model))
        vector = self._queries(request.query, model.suffix)
        words = self.lexicon.scores(request.query, model)
        orders = [self._by_meaning(request.query, vector, allowed, model), self._by_words(words, allowed)]
        rows = np.sort(top_k(reciprocal_rank_fusion(orders, _ALIKE, len(model)), self._settings.candidates))
        if not len(rows):
            return Found(rows, _NOTHING, _NOTHING, _NOTHING, {})
        personal, probabilities = model.ranker.score_with_probabilities(
            self._answers.context(request, model), rows, vector[None]
        )
        orders.append(rows[np.argsort(-personal, kind="stable")])
        scores = reciprocal_rank_fusion(orders, (*_ALIKE, self._settings.personal_weight), len(model))[rows]
        order = top_k(scores, pool_size(request.k) if request.diversity else request.k)
        if request.diversity:
            order = spread(model, order, rows, scores, request.diversity, request.k)
        order = order[self._answers.may_be_offered(model, rows[order])][: request.k]
        found = rows[order]
        told = {outcome: values[order] for outcome, values in probabilities.items()}
        return Found(found, scores[order], _similarity(vector, found, model), words[found], told)

    def answer(self, request: AnswerRequest, model: ServedModel) -> tuple[float, Found]:
        """The items of kind `answer` that fit a question best, and how sure it is that the first one answers it."""
        allowed = self._answers.offered(_ANSWERS, model)
        similarity = _similarity(self._queries(request.question, model.suffix), allowed, model)
        order = top_k(similarity, request.k)
        rows, scores = allowed[order], similarity[order]
        if not len(rows):
            return 0.0, Found(rows, _NOTHING, _NOTHING, _NOTHING, {})
        sure = sure_of(float(scores[0]), self._settings.confident_similarity)
        return sure, Found(rows, scores, scores, np.zeros_like(scores), {})

    def _by_meaning(self, query: str, vector: Tensor, allowed: IntArray, model: ServedModel) -> IntArray:
        """Rows whose texts are nearest to a query, the nearest first."""
        count = self._settings.candidates
        rows = self.near.among(query, self._queries, allowed, _LOOKED_AT * count, model)
        return rows[top_k(_similarity(vector, rows, model), count)]

    def _by_words(self, words: FloatArray, allowed: IntArray) -> IntArray:
        """Rows that have words of a query, the best first."""
        having = allowed[words[allowed] > 0]
        return having[top_k(words[having], self._settings.candidates)]


def sure_of(similarity: float, half_sure: float) -> float:
    """How likely an answer answers a question, by their cosine and that at which it is one half."""
    return 1 / (1 + math.exp(-_CONFIDENCE_SLOPE * (similarity - half_sure)))


@torch.inference_mode()
def _similarity(vector: Tensor, rows: IntArray, model: ServedModel) -> FloatArray:
    """Cosine of a query and the texts of some rows, [rows]."""
    few = len(rows) < len(model) // 4  # a copy of many rows costs more than the product with all
    text = model.text_vectors[torch.from_numpy(rows)] if few else model.text_vectors
    similarity: FloatArray = (text @ vector).numpy()
    return similarity if few else similarity[rows]
