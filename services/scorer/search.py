"""Search: items for a query by meaning, by words and by the shopper's own ranking, fused."""

import math
from dataclasses import dataclass

import numpy as np

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.serving.neighbours import usearch_is_installed
from peft_adapters.serving.served_model import ServedModel
from services.scorer.diversity import pool_size
from services.scorer.filters import Filters
from services.scorer.lexicon import Lexicon, NearItems
from services.scorer.recommender import Recommender, diversified_order, rows_of
from services.scorer.refresher import Refresher
from services.scorer.requests import EmptyBecause, ListRequest
from services.scorer.search_requests import AnswerRequest, SearchRequest
from services.scorer.serving_table import ServingTable
from services.settings.search import SearchSettings

_NOTHING = np.zeros(0, dtype=np.float32)
_ANSWERS = ListRequest(filters=Filters(kinds=("answer",)))
FUSION_WEIGHTS = (1.0, 2.0)  # of meaning and words, so that items with a word of the query come first
_RESCORED = 4  # near items of a graph that are scored exactly, for each item wanted
_CONFIDENCE_SLOPE = 10.0  # a cosine higher by 0.1 multiplies the odds by e; measured, see the guide to search


@dataclass(frozen=True, slots=True)
class SearchHits:
    """Rows of a model, best first.

    Attributes:
        rows: rows of the model, [hits].
        scores: the scores that order them, [hits].
        similarity: cosine of query and text, [hits].
        words: BM25, 0 for an item with none of the query's words, [hits].
        probabilities: by outcome, the probability for each item if it is shown, [hits]; empty without learnt lists.
    """

    rows: IntArray
    scores: FloatArray
    similarity: FloatArray
    words: FloatArray
    probabilities: dict[str, FloatArray]


class Search:
    """Answers queries in words, each from the one model that was served when the query arrived.

    Args:
        queries: the encoder of queries.
        recommender: knows shoppers and the items that are available.
        table: the models that are served, whose items are indexed.
        settings: the sizes and weights of the search.

    Attributes:
        lexicon: the index of words; until it is first built, queries are answered by meaning alone.
        neighbours: the index of near items in large catalogues.
        min_confidence: the confidence below which a question has no known answer.
    """

    def __init__(
        self, queries: QueryEncoder, recommender: Recommender, table: ServingTable, settings: SearchSettings
    ) -> None:
        self.lexicon = Lexicon(table)
        self.neighbours = NearItems(table, above_items=settings.graph_above_items)
        self.min_confidence = settings.min_confidence
        self._queries, self._recommender, self._settings = queries, recommender, settings

    def refreshers(self) -> list[Refresher]:
        """Return the refreshers of the indexes, to be run in threads."""
        refreshers = [Refresher("words", self.lexicon.refresh)]
        if usearch_is_installed():
            refreshers.append(Refresher("graph", self.neighbours.refresh))
        return refreshers

    def search(self, request: SearchRequest, model: ServedModel) -> SearchHits:
        """Return the `k` items that fit a query and the shopper best."""
        allowed = self._recommender.allowed_rows(request, model, excluded=rows_of(request.exclude, model))
        vector: FloatArray = self._queries(request.query, model.suffix).numpy()
        words = self.lexicon.scores(request.query, model)
        orders = [self._by_meaning(request.query, vector, allowed, model), self._by_words(words, allowed)]
        rows = np.sort(top_k(reciprocal_rank_fusion(orders, FUSION_WEIGHTS, len(model)), self._settings.candidates))
        if not len(rows):
            return SearchHits(rows, _NOTHING, _NOTHING, _NOTHING, {})
        personal, probabilities = model.scorer.score_with_probabilities(
            self._recommender.context(request, model), rows, vector[None]
        )
        orders.append(rows[np.argsort(-personal, kind="stable")])
        scores = reciprocal_rank_fusion(orders, (*FUSION_WEIGHTS, self._settings.personal_weight), len(model))[rows]
        order = top_k(scores, pool_size(request.k) if request.diversity else request.k)
        if request.diversity:
            order = diversified_order(model, order, rows, scores, request.diversity, request.k)
        order = order[self._recommender.are_available(model, rows[order])][: request.k]
        hits = rows[order]
        by_outcome = {outcome: values[order] for outcome, values in probabilities.items()}
        return SearchHits(hits, scores[order], _similarity(vector, hits, model), words[hits], by_outcome)

    def found_nothing_because(self, request: SearchRequest, model: ServedModel) -> EmptyBecause:
        """Return why a search found nothing."""
        return self._recommender.nothing_allowed_because(request, model)

    def answer(self, request: AnswerRequest, model: ServedModel) -> tuple[float, SearchHits]:
        """Return the items of kind `answer` that fit a question best, with the confidence that the first answers it."""
        allowed = self._recommender.allowed_rows(_ANSWERS, model)
        similarity = _similarity(self._queries(request.question, model.suffix).numpy(), allowed, model)
        order = top_k(similarity, request.k)
        rows, scores = allowed[order], similarity[order]
        if not len(rows):
            return 0.0, SearchHits(rows, _NOTHING, _NOTHING, _NOTHING, {})
        confidence = confidence_of(float(scores[0]), self._settings.confident_similarity)
        return confidence, SearchHits(rows, scores, scores, np.zeros_like(scores), {})

    def _by_meaning(self, query: str, vector: FloatArray, allowed: IntArray, model: ServedModel) -> IntArray:
        """Return the rows whose texts are nearest to a query, nearest first."""
        count = self._settings.candidates
        rows = self.neighbours.candidates(query, self._queries, allowed, _RESCORED * count, model)
        return rows[top_k(_similarity(vector, rows, model), count)]

    def _by_words(self, words: FloatArray, allowed: IntArray) -> IntArray:
        """Return the rows with words of a query, best first."""
        matching = allowed[words[allowed] > 0]
        return matching[top_k(words[matching], self._settings.candidates)]


def confidence_of(similarity: float, half: float) -> float:
    """Return the probability that an answer answers a question.

    Args:
        similarity: the cosine of question and answer.
        half: the cosine at which the probability is one half.
    """
    return 1 / (1 + math.exp(-_CONFIDENCE_SLOPE * (similarity - half)))


def _similarity(vector: FloatArray, rows: IntArray, model: ServedModel) -> FloatArray:
    """Return the cosine of a query and the text of each row, [rows]."""
    few = len(rows) < len(model) // 4  # copying many rows costs more than the product with all
    similarity: FloatArray = (model.text_vectors[rows] if few else model.text_vectors) @ vector
    return similarity if few else similarity[rows]
