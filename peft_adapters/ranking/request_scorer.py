"""Scores and outcome probabilities for one shopper, with the numbers of a batch in fewer steps.

Everything that does not depend on the context is precomputed. Compiled loops read counters and vectors in place, and
one matrix product computes scores and log odds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from peft_adapters.errors import ModelValueError
from peft_adapters.ranking import second_stage_kernels, vector_kernels
from peft_adapters.ranking.calibration import INPUTS, Probabilities, outcome_probabilities
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import FloatArray, IntArray
from peft_adapters.ranking.recency import HISTORY_RECENCY, PASSED_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.retrieval import top_k
from peft_adapters.ranking.second_stage import RERANKED, SecondStage
from peft_adapters.ranking.second_stage_features import SecondStageFeatures, VectorTable, newest_rows
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE
from peft_adapters.settings import COUNTER_FEATURES, FEATURES

_PRESELECTED = 2  # candidates scored with attention first, per requested one
_MAX_COSINE = 1.0001  # in single precision
_RECENCY = tuple(recency.table for recency in (SESSION_RECENCY, HISTORY_RECENCY, PASSED_RECENCY))


class RequestScorer:
    """Scorer of single contexts for a frozen ranker.

    Args:
        counter_features: counter features of the frozen counters.
        context_vectors: item vectors in the query role.
        candidate_vectors: [items, dim] item vectors in the candidate role.
        static_features: values [items] independent of the context: affinity to the global preference, text share and
            conversion.
        heads: [FEATURES] weights of the first stage's score.
        second_stage: networks that re-rank the best candidates.
        second_stage_features: inputs that only the networks use, of the frozen counters.
        probabilities: weights that predict outcome probabilities; None if they are unknown.
    """

    def __init__(
        self,
        counter_features: CounterFeatures,
        *,
        context_vectors: ContextVectors,
        candidate_vectors: Tensor,
        static_features: tuple[Tensor, Tensor, Tensor],
        heads: Tensor,
        second_stage: SecondStage,
        second_stage_features: SecondStageFeatures,
        probabilities: Probabilities | None,
    ) -> None:
        self._counter_features, self._context_vectors = counter_features, context_vectors
        self._candidate_vectors: FloatArray = candidate_vectors.numpy()
        self._second_stage_features = second_stage_features
        self._networks = second_stage.kernel() if second_stage.is_active else None
        self._static_features: FloatArray = torch.stack(static_features).numpy()
        scale = heads[FEATURES.index("session_attention_new")].abs() * float(AFFINITY_SCALE)
        # [items] largest possible change of a score by attention, which is a mean of cosines
        self._attention_bound: FloatArray = (_MAX_COSINE * scale * static_features[1]).numpy()
        outcomes = () if probabilities is None else (weights for weights in probabilities if weights is not None)
        weights = torch.stack([torch.nn.functional.pad(heads, (0, INPUTS - len(heads))), *outcomes])
        self._weights: FloatArray = weights.numpy()

    def features(self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None) -> Tensor:
        """Return features [FEATURES, 1, candidates]; arguments as in `score`."""
        rows = np.arange(len(self._candidate_vectors)) if columns is None else columns
        return torch.from_numpy(self._inputs(contexts, rows, query_vector)[: len(FEATURES), None])

    def score(self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None) -> FloatArray:
        """Return scores [candidates]; of the whole catalogue, only the best reach the second stage.

        Args:
            contexts: recent items of one shopper.
            columns: [candidates] sorted rows of the candidates; None is the whole catalogue.
            query_vector: [1, dim] unit vector of the search query; None without one.
        """
        rows = np.arange(len(self._candidate_vectors)) if columns is None else columns
        inputs = self._inputs(contexts, rows, query_vector)
        scores: FloatArray = _weighted_sums(self._weights[:1], inputs)[0]
        if self._networks is not None:
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
        if self._networks is None:
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
            rows = rows[without + self._attention_bound[rows] >= threshold]
        return rows, *self._linear_scores(contexts, rows)

    def _linear_scores(
        self, contexts: Contexts, rows: IntArray, *, with_attention: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Return inputs [INPUTS, candidates] and the first stage's scores [candidates]."""
        inputs = self._inputs(contexts, rows, None, with_attention=with_attention)
        return inputs, _weighted_sums(self._weights[:1], inputs)[0]

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
        more = self._second_stage_features.values(
            contexts,
            rows[None],
            query=self._context_vectors.table(contexts),
            candidate=VectorTable(self._candidate_vectors),
        )[0]
        second_stage_kernels.add_outputs(self._networks, inputs, more, scores)

    def score_with_probabilities(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return scores [candidates], and by outcome the probability [candidates] at the first position."""
        rows = np.arange(len(self._candidate_vectors)) if columns is None else columns
        inputs = self._inputs(contexts, rows, query_vector)
        scores, *log_odds = _weighted_sums(self._weights, inputs)
        if self._networks is not None:
            self._add_outputs(contexts, rows, inputs, scores)
        if not log_odds:
            return scores, {}
        probabilities = outcome_probabilities([torch.from_numpy(values) for values in log_odds])
        return scores, {outcome: probability.numpy() for outcome, probability in probabilities.items()}

    def _inputs(
        self, contexts: Contexts, columns: IntArray, query_vector: Tensor | None, *, with_attention: bool = True
    ) -> FloatArray:
        """Return the inputs [INPUTS, candidates] of `calibration.outcome_inputs`: features, conversion, 1 and 0.

        Raises:
            ModelValueError: the number of contexts is not one; compiled loops do not check it.
        """
        if len(contexts) != 1:
            raise ModelValueError(f"exactly one context must be given, got {len(contexts)}; score contexts one by one")
        inputs = np.zeros((INPUTS, len(columns)), dtype=np.float32)
        counter_count = len(COUNTER_FEATURES)
        self._counter_features.fill(contexts, columns, inputs[:counter_count, None])
        context_vectors, items, passed = self._context_vectors.of_context(contexts)
        vector_kernels.affinity_features(
            (items, contexts.ages[0], passed),
            _RECENCY,
            context_vectors,
            inputs[:0, : context_vectors.shape[1]] if query_vector is None else query_vector.numpy(),
            with_attention,
            columns,
            self._candidate_vectors,
            self._static_features,
            inputs[counter_count:],
        )
        return inputs


def _weighted_sums(weights: FloatArray, inputs: FloatArray) -> FloatArray:
    """Return sums [sums, candidates] of inputs [inputs, candidates], weighted by [sums, inputs]."""
    sums = np.empty((len(weights), inputs.shape[1]), dtype=np.float32)
    vector_kernels.weighted_sums(weights, inputs, sums)
    return sums


class ContextVectors:
    """Item vectors in the query role, precomputed or computed on demand.

    Args:
        vectors: [items, dim] vectors of all items, or a function that returns those [rows, dim] of some rows.
    """

    def __init__(self, vectors: Tensor | Callable[[IntArray], Tensor]) -> None:
        self._vectors = vectors
        self._table: FloatArray | None = vectors.numpy() if isinstance(vectors, Tensor) else None

    def __call__(self, rows: IntArray) -> Tensor:
        """Return vectors [rows, dim] of some rows."""
        return self._vectors[torch.from_numpy(rows)] if isinstance(self._vectors, Tensor) else self._vectors(rows)

    def table(self, contexts: Contexts) -> VectorTable:
        """Return a table with the vectors of at least the contexts' newest items."""
        if self._table is not None:
            return VectorTable(self._table)
        rows = newest_rows(contexts)
        return VectorTable(self(rows).numpy(), rows)

    def of_context(self, contexts: Contexts) -> tuple[FloatArray, IntArray, IntArray]:
        """Return a table [.., dim] of vectors, and its rows for one context's items [items] and passed-over items."""
        items, passed = contexts.items[0], contexts.passed[0]
        if self._table is not None:
            return self._table, items, passed
        rows = contexts.rows()
        places = np.searchsorted(rows, items), np.where(passed < 0, -1, np.searchsorted(rows, passed))
        return self(rows).numpy(), *places
