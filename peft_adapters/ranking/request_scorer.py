"""Scores and probabilities for one shopper at a time, as answers need them: the numbers of a batch, few steps.

What does not depend on who asks is kept; counters and vectors are looked at by compiled loops, which take candidates
where they lie; scores and log odds come of one product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import kernels
from peft_adapters.ranking.calibration import INPUTS, Probabilities, outcome_probabilities
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import FloatArray, IntArray
from peft_adapters.ranking.kernels import AFFINITY_SCALE
from peft_adapters.ranking.recency import HISTORY_RECENCY, PASSED_RECENCY, SESSION_RECENCY
from peft_adapters.ranking.retrieval import top_k
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES, FEATURES

_AHEAD = 2  # of those that are looked at first, for each that is wanted
_ROUNDED = 1.0001  # cosines in single precision
_RECENCY = tuple(own.table for own in (SESSION_RECENCY, HISTORY_RECENCY, PASSED_RECENCY))


class RequestScorer:
    """A frozen ranker's single contexts.

    Args:
        counted: the counters.
        query: vectors of context items.
        candidate: [items, dim] vectors of candidates.
        standing: [items] each, what does not depend on who asks: how an item is liked, how far text speaks for it, and
            how its clicks convert.
        heads: [FEATURES].
        probabilities: what says how likely outcomes are, where that is known.
    """

    def __init__(
        self,
        counted: CounterFeatures,
        *,
        query: QueryVectors,
        candidate: Tensor,
        standing: tuple[Tensor, Tensor, Tensor],
        heads: Tensor,
        probabilities: Probabilities | None,
    ) -> None:
        self._counted, self._query = counted, query
        self._candidate: FloatArray = candidate.numpy()
        self._standing: FloatArray = torch.stack(standing).numpy()
        scale = heads[FEATURES.index("session_attention_new")].abs() * float(AFFINITY_SCALE)
        self._attention_at_most: FloatArray = (_ROUNDED * scale * standing[1]).numpy()  # a mean of cosines: at most 1
        outcomes = () if probabilities is None else (own for own in probabilities if own is not None)
        weights = torch.stack([torch.nn.functional.pad(heads, (0, INPUTS - len(heads))), *outcomes])
        self._weights: FloatArray = weights.numpy()

    def features(self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None) -> Tensor:
        """Features [FEATURES, 1, candidates]."""
        return torch.from_numpy(self._inputs(contexts, columns, query_vector)[: len(FEATURES), None])

    def score(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None, *, attends: bool = True
    ) -> FloatArray:
        """Scores [candidates]; without attention where that is not wanted."""
        scores: FloatArray = _weighted(
            self._weights[:1], self._inputs(contexts, columns, query_vector, attends=attends)
        )[0]
        return scores

    def top_k(self, contexts: Contexts, rows: IntArray, count: int) -> tuple[IntArray, FloatArray]:
        """The best of some rows, the best first, and their scores.

        Attention looks at each item of the session for each candidate, and moves a score by so much at most. What it
        cannot lift to where the best without it end up is not looked at (branch and bound).

        Args:
            contexts: of one shopper.
            rows: sorted.
            count: so many, or all where there are fewer.
        """
        if count < len(rows):
            without = self.score(contexts, rows, None, attends=False)
            ahead = np.sort(rows[top_k(without, _AHEAD * count)])
            reached = np.partition(self.score(contexts, ahead, None), -count)[-count]
            rows = rows[without + self._attention_at_most[rows] >= reached]
        scores = self.score(contexts, rows, None)
        order = top_k(scores, count)
        return rows[order], scores[order]

    def score_with_probabilities(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The same scores, and by outcome the probability [candidates] of each that is shown in the first place."""
        scores, *log_odds = _weighted(self._weights, self._inputs(contexts, columns, query_vector))
        if not log_odds:
            return scores, {}
        probabilities = outcome_probabilities([torch.from_numpy(own) for own in log_odds])
        return scores, {outcome: own.numpy() for outcome, own in probabilities.items()}

    def _inputs(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None, *, attends: bool = True
    ) -> FloatArray:
        """What `calibration.outcome_inputs` gives, [INPUTS, candidates]: features, conversion, 1, and 0 for the place.

        Raises:
            ValueError: there is not one context; compiled loops would not notice.
        """
        if len(contexts) != 1:
            raise ValueError(f"one context is looked at, got {len(contexts)}; give them one by one")
        columns = np.arange(len(self._candidate)) if columns is None else columns
        inputs = np.zeros((INPUTS, len(columns)), dtype=np.float32)
        of_counters = len(COUNTER_FEATURES)
        self._counted.put(contexts, columns, inputs[:of_counters, None])
        query, items, passed = self._query.of(contexts)
        kernels.compared(
            (items, contexts.ages[0], passed),
            _RECENCY,
            query,
            inputs[:0, : query.shape[1]] if query_vector is None else query_vector.numpy(),
            attends,
            columns,
            self._candidate,
            self._standing,
            inputs[of_counters:],
        )
        return inputs


def _weighted(weights: FloatArray, inputs: FloatArray) -> FloatArray:
    """Weighted sums of inputs, [sums, candidates]."""
    found = np.empty((len(weights), inputs.shape[1]), dtype=np.float32)
    kernels.weighted(weights, inputs, found)
    return found


class QueryVectors:
    """Vectors of what contexts look at.

    Args:
        vectors: [items, dim] all of them, or what makes those [rows, dim] of some rows.
    """

    def __init__(self, vectors: Tensor | Callable[[IntArray], Tensor]) -> None:
        self._vectors = vectors
        self._table: FloatArray | None = vectors.numpy() if isinstance(vectors, Tensor) else None

    def __call__(self, rows: IntArray) -> Tensor:
        """Of some rows, [rows, dim]."""
        return self._vectors[torch.from_numpy(rows)] if isinstance(self._vectors, Tensor) else self._vectors(rows)

    def of(self, contexts: Contexts) -> tuple[FloatArray, IntArray, IntArray]:
        """Of one context: a table [.., dim], and where in it the context's items and those passed over are."""
        items, passed = contexts.items[0], contexts.passed[0]
        if self._table is not None:
            return self._table, items, passed
        rows = contexts.rows()
        places = np.searchsorted(rows, items), np.where(passed < 0, -1, np.searchsorted(rows, passed))
        return self(rows).numpy(), *places
