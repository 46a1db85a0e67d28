"""Items for a query in words: by meaning and by words, then in the order of the shopper who asks."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from peft_adapters.counters import FloatArray, IntArray
from peft_adapters.query_encoder import QueryEncoder
from peft_adapters.retrieval import best, fused
from peft_adapters.serving import ServedModel
from services.scorer.answers import Answers, rows_of, spread
from services.scorer.diversity import pool_size
from services.scorer.filters import Filters
from services.scorer.lexicon import Lexicon
from services.scorer.requests import ListRequest
from services.scorer.search_requests import AnswerRequest, SearchRequest
from services.scorer.search_settings import SearchSettings

_NOTHING = np.zeros(0, dtype=np.float32)
_ANSWERS = ListRequest(filters=Filters(kinds=("answer",)))
_ALIKE = (1.0, 1.0)  # meaning and words
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
        answers: Knows who asks, and what may be answered.
        lexicon: Knows the words of items; queries are answered by meaning alone before its first index.
        settings: How many items are looked at.

    Attributes:
        lexicon: That of the arguments; its thread is to be run beside.
        min_confidence: An answer below it is none.
    """

    def __init__(self, queries: QueryEncoder, answers: Answers, lexicon: Lexicon, settings: SearchSettings) -> None:
        self.lexicon, self._settings = lexicon, settings
        self._queries, self._answers = queries, answers
        self.min_confidence = settings.min_confidence

    def search(self, request: SearchRequest, model: ServedModel) -> Found:
        """The `k` items that fit a query and the shopper best."""
        allowed = self._allowed(request, model)
        allowed[rows_of(request.exclude, model)] = False
        similarity = self._similarity(request.query, model)
        words = self._words(request.query, model)
        orders = self._orders(similarity, words, allowed)
        rows = np.sort(best(fused(orders, _ALIKE, len(model)), self._settings.candidates))
        if not len(rows):
            return Found(rows, _NOTHING, _NOTHING, _NOTHING, {})
        personal, probabilities = model.ranker.judge(self._answers.context(request, model), rows)
        orders.append(rows[np.argsort(-personal[0].numpy(), kind="stable")])
        scores = fused(orders, (*_ALIKE, self._settings.personal_weight), len(model))[rows]
        order = best(scores, pool_size(request.k) if request.diversity else request.k)
        if request.diversity:
            order = spread(model, order, rows, scores[order], request.diversity, request.k)
        order = order[self._answers.may_be_offered(model, rows[order])][: request.k]
        found = rows[order]
        told = {outcome: values[0].numpy()[order] for outcome, values in probabilities.items()}
        return Found(found, scores[order], similarity[found], words[found], told)

    def answer(self, request: AnswerRequest, model: ServedModel) -> tuple[float, Found]:
        """The items of kind `answer` that fit a question best, and how sure it is that the first one answers it."""
        similarity = self._similarity(request.question, model)
        rows = best(np.where(self._allowed(_ANSWERS, model), similarity, -np.inf), request.k)
        if not len(rows):
            return 0.0, Found(rows, _NOTHING, _NOTHING, _NOTHING, {})
        scores = similarity[rows]
        odds = _CONFIDENCE_SLOPE * (float(scores[0]) - self._settings.confident_similarity)
        return 1 / (1 + math.exp(-odds)), Found(rows, scores, scores, np.zeros_like(scores), {})

    def _allowed(self, request: ListRequest, model: ServedModel) -> npt.NDArray[np.bool_]:
        """Which rows [items] have a text, are what was asked for, and neither blocked nor removed at this moment."""
        rows = self._answers.wanted(request, model, np.flatnonzero(model.has_text))
        allowed = np.zeros(len(model), dtype=np.bool_)
        allowed[rows[self._answers.may_be_offered(model, rows)]] = True
        return allowed

    def _orders(self, similarity: FloatArray, words: FloatArray, allowed: npt.NDArray[np.bool_]) -> list[IntArray]:
        """The best rows by meaning, and the best by words."""
        count = self._settings.candidates
        by_meaning = best(np.where(allowed, similarity, -np.inf), count)
        by_words = best(np.where(allowed & (words > 0), words, -np.inf), count)
        return [by_meaning, by_words]

    def _similarity(self, query: str, model: ServedModel) -> FloatArray:
        """Cosine of the query and the text of each row, [items]."""
        with torch.inference_mode():
            similarity: FloatArray = (model.text @ self._queries(query, model.suffix)).numpy()
        return similarity

    def _words(self, query: str, model: ServedModel) -> FloatArray:
        """BM25 of each row, [items]; rows may have come since the index was made, or the index since the model was."""
        scores = np.zeros(len(model), dtype=np.float32)
        index = self.lexicon.words
        if index is not None:
            known = min(len(index), len(model.row_of))
            scores[model.row_of[:known]] = index.scores(query)[:known]
        return scores
