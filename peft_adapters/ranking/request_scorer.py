"""Scores and outcome probabilities for one shopper, with the numbers of a batch in fewer steps.

Everything that does not depend on the context is precomputed. Compiled loops read counters and vectors in place, and
one matrix product computes scores and log odds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from peft_adapters.errors import ModelValueError
from peft_adapters.ranking import second_stage_kernels, vector_kernels
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.outcomes import INPUTS, outcome_probabilities
from peft_adapters.ranking.recency import HISTORY_RECENCY, PASSED_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.retrieval import top_k
from peft_adapters.ranking.second_stage_features import SecondStageFeatures, VectorTable, newest_rows
from peft_adapters.ranking.second_stage_kernels import RERANKED
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE
from peft_adapters.settings import COUNTER_FEATURES, FEATURES

_PRESELECTED = 2  # candidates scored with attention first, per requested one
_MAX_COSINE = 1.0001  # in single precision
_RECENCY = tuple(recency.table for recency in (SESSION_RECENCY, HISTORY_RECENCY, PASSED_RECENCY))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestScorer:
    """Scorer of single contexts, over arrays that never change.

    Attributes:
        counter_features: counter features of the candidates.
        second_stage_features: inputs that only the networks use.
        context_vectors: item vectors in the query role.
        candidate_vectors: [items, dim] item vectors in the candidate role.
        static_features: [3, items] values independent of the context: affinity to the global preference, text share
            and conversion.
        weights: [1 + outcomes, INPUTS] weights of the first stage's score and of the log odds of each outcome.
        networks: what `SecondStage.kernel` returns; None if the networks change no score.
    """

    counter_features: CounterFeatures
    second_stage_features: SecondStageFeatures
    context_vectors: ContextVectors
    candidate_vectors: FloatArray
    static_features: FloatArray
    weights: FloatArray
    networks: tuple[object, ...] | None

    def features(self, contexts: Contexts, columns: IntArray | None, query_vector: FloatArray | None) -> FloatArray:
        """Return features [FEATURES, 1, candidates]; arguments as in `score`."""
        rows = np.arange(len(self.candidate_vectors)) if columns is None else columns
        return self._inputs(contexts, rows, query_vector)[: len(FEATURES), None]

    def score(self, contexts: Contexts, columns: IntArray | None, query_vector: FloatArray | None) -> FloatArray:
        """Return scores [candidates]; of the whole catalogue, only the best reach the second stage.

        Args:
            contexts: recent items of one shopper.
            columns: [candidates] sorted rows of the candidates; None is the whole catalogue.
            query_vector: [1, dim] unit vector of the search query; None without one.
        """
        rows = np.arange(len(self.candidate_vectors)) if columns is None else columns
        inputs = self._inputs(contexts, rows, query_vector)
        scores: FloatArray = _weighted_sums(self.weights[:1], inputs)[0]
        if self.networks is not None:
            reach = self._rerank if columns is None else self._add_outputs
            reach(contexts, rows, inputs, scores)
        return scores

    def top_k(self, contexts: Contexts, rows: IntArray, count: int) -> tuple[IntArray, FloatArray]:
        """Return the best rows, best first, and their scores: those of the first stage, re-ranked by the second.

        Args:
            contexts: recent items of one shopper.
            rows: [candidates] sorted rows of the candidates.
            count: number of rows to return; fewer if there are fewer candidates.
        """
        if self.networks is None:
            rows, _, scores = self._first_stage(contexts, rows, count)
        else:
            rows, inputs, scores = self._first_stage(contexts, rows, max(count, RERANKED))
            self._rerank(contexts, rows, inputs, scores)
        order = top_k(scores, count)
        return rows[order], scores[order]

    def _first_stage(self, contexts: Contexts, rows: IntArray, count: int) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return rows that include the `count` best of the first stage, their inputs and scores, by branch and bound.

        Attention compares every item of the session with every candidate, and changes a score by a bounded amount.
        Candidates that this bound cannot lift into the best `count` are skipped.
        """
        if count < len(rows):
            without = self._linear_scores(contexts, rows, with_attention=False)[1]
            preselected = np.sort(rows[top_k(without, _PRESELECTED * count)])
            threshold = np.partition(self._linear_scores(contexts, preselected)[1], -count)[-count]
            rows = rows[without + self._attention_bound(rows) >= threshold]
        return rows, *self._linear_scores(contexts, rows)

    def _attention_bound(self, rows: IntArray) -> FloatArray:
        """Return the largest possible change of each row's score by attention, a mean of cosines, [rows]."""
        weight = abs(self.weights[0, FEATURES.index("session_attention_new")])
        bound: FloatArray = np.float32(_MAX_COSINE) * weight * AFFINITY_SCALE * self.static_features[1, rows]
        return bound

    def _linear_scores(
        self, contexts: Contexts, rows: IntArray, *, with_attention: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Return inputs [INPUTS, candidates] and the first stage's scores [candidates]."""
        inputs = self._inputs(contexts, rows, None, with_attention=with_attention)
        return inputs, _weighted_sums(self.weights[:1], inputs)[0]

    def _rerank(self, contexts: Contexts, rows: IntArray, inputs: FloatArray, scores: FloatArray) -> None:
        """Add the networks' outputs to the best scores [candidates], and keep the others below these."""
        best = top_k(scores, RERANKED)
        reranked = scores[best]
        self._add_outputs(contexts, rows[best], np.ascontiguousarray(inputs[:, best]), reranked)
        is_other = np.ones(len(scores), dtype=np.bool_)
        is_other[best] = False
        if is_other.any() and len(best):
            scores[is_other] -= max(scores[is_other].max() - reranked.min(), 0.0)
        scores[best] = reranked

    def _add_outputs(self, contexts: Contexts, rows: IntArray, inputs: FloatArray, scores: FloatArray) -> None:
        """Add the networks' outputs to scores [candidates]."""
        more = self.second_stage_features.features(
            contexts,
            rows[None],
            query=self.context_vectors.table(contexts),
            candidate=VectorTable(self.candidate_vectors),
        )[0]
        second_stage_kernels.add_outputs(self.networks, inputs, more, scores)

    def score_with_probabilities(
        self, contexts: Contexts, columns: IntArray | None, query_vector: FloatArray | None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return scores [candidates], and by outcome the probability [candidates] at the first position."""
        rows = np.arange(len(self.candidate_vectors)) if columns is None else columns
        inputs = self._inputs(contexts, rows, query_vector)
        scores, *log_odds = _weighted_sums(self.weights, inputs)
        if self.networks is not None:
            self._add_outputs(contexts, rows, inputs, scores)
        return scores, outcome_probabilities(log_odds) if log_odds else {}

    def _inputs(
        self, contexts: Contexts, columns: IntArray, query_vector: FloatArray | None, *, with_attention: bool = True
    ) -> FloatArray:
        """Return the inputs [INPUTS, candidates] of `calibration.outcome_inputs`: features, conversion, 1 and 0.

        Raises:
            ModelValueError: the number of contexts is not one; compiled loops do not check it.
        """
        if len(contexts) != 1:
            raise ModelValueError(f"exactly one context must be given, got {len(contexts)}; score contexts one by one")
        inputs = np.zeros((INPUTS, len(columns)), dtype=np.float32)
        counter_count = len(COUNTER_FEATURES)
        self.counter_features.fill(contexts, columns, inputs[:counter_count, None])
        context_vectors, items, passed = self.context_vectors.of_context(contexts)
        vector_kernels.affinity_features(
            (items, contexts.ages[0], passed),
            _RECENCY,
            context_vectors,
            inputs[:0, : context_vectors.shape[1]] if query_vector is None else query_vector,
            with_attention,
            columns,
            self.candidate_vectors,
            self.static_features,
            inputs[counter_count:],
        )
        return inputs


def _weighted_sums(weights: FloatArray, inputs: FloatArray) -> FloatArray:
    """Return sums [sums, candidates] of inputs [inputs, candidates], weighted by [sums, inputs]."""
    sums = np.empty((len(weights), inputs.shape[1]), dtype=np.float32)
    vector_kernels.weighted_sums(weights, inputs, sums)
    return sums


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Unit vectors of items in one role, computed on demand from their parts; see `ranker`.

    Attributes:
        text: [items, dim] text vectors.
        gate: [items] weight of each item's residual.
        residuals: [items, dim] learnt residuals, fp32 or fp16.
    """

    text: FloatArray
    gate: FloatArray
    residuals: npt.NDArray[np.floating[Any]]

    def __call__(self, rows: IntArray) -> FloatArray:
        """Return the vectors [rows, dim] of some rows."""
        vectors = np.empty((len(rows), self.text.shape[1]), dtype=np.float32)
        residuals = self.residuals[rows].astype(np.float32, copy=False)
        vector_kernels.item_vectors(self.text[rows], self.gate[rows], residuals, vectors)
        return vectors


class ContextVectors:
    """Item vectors in the query role, precomputed or computed on demand.

    Args:
        vectors: [items, dim] vectors of all items, or a function that returns those [rows, dim] of some rows.
    """

    def __init__(self, vectors: FloatArray | Callable[[IntArray], FloatArray]) -> None:
        self._vectors = vectors

    def __call__(self, rows: IntArray) -> FloatArray:
        """Return vectors [rows, dim] of some rows."""
        return self._vectors(rows) if callable(self._vectors) else self._vectors[rows]

    def table(self, contexts: Contexts) -> VectorTable:
        """Return a table with the vectors of at least the contexts' newest items."""
        if not callable(self._vectors):
            return VectorTable(self._vectors)
        rows = newest_rows(contexts)
        return VectorTable(self._vectors(rows), rows)

    def of_context(self, contexts: Contexts) -> tuple[FloatArray, IntArray, IntArray]:
        """Return a table [.., dim] of vectors, and its rows for one context's items [items] and passed-over items."""
        items, passed = contexts.items[0], contexts.passed[0]
        if not callable(self._vectors):
            return self._vectors, items, passed
        rows = contexts.rows()
        places = np.searchsorted(rows, items), np.where(passed < 0, -1, np.searchsorted(rows, passed))
        return self._vectors(rows), *places
