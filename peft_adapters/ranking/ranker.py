"""The ranker: item vectors, counters and heads of a scenario, and the scores that follow from them.

An item's vector is `z_i = normalize(text_i + gate_i * residual_i)`, in two roles: as an item of a context (query) and
as a candidate. The gate `n / (n + 5)` of an item with `n` events relies on the text of new items and shifts to the
residual as evidence accumulates. A score is a head's weighted sum of counter and affinity features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import vector_kernels
from peft_adapters.ranking.affinities import Affinities, affinity_features, weighted_sum
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.calibration import Probabilities
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.features import (
    INITIAL_WEIGHTS,
    affinity_weights,
    context_weights,
    pad_features,
)
from peft_adapters.ranking.item_facts import ItemFacts
from peft_adapters.ranking.item_rates import conversion
from peft_adapters.ranking.outcomes import INPUTS
from peft_adapters.ranking.request_scorer import ContextVectors, ItemVectors, RequestScorer
from peft_adapters.ranking.second_stage import RERANKED, SecondStage, rerank
from peft_adapters.ranking.second_stage_features import SecondStageFeatures, VectorTable
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.registry.tensor_rules import ROLES as ROLES
from peft_adapters.settings import FEATURES

_VECTORS_CHUNK = 1_024  # items whose vectors are computed at a time: fresh memory costs more than the sums
PRECOMPUTED_ITEMS = 50_000  # of larger catalogues, vectors in the query role are computed on demand
GATE_EVENTS = 5.0  # number of events after which an item's residual has weight one half


@dataclass(slots=True)
class Ranker:
    """Weights and counters of one scenario at one moment.

    Attributes:
        heads: [FEATURES] weights of the score.
        global_preference: [dim] preference vector shared by all shoppers; its product with an item is a feature.
        text: [items, dim] unit text vectors under the current adapter.
        residuals: residuals [items, dim] by role, zero for items without evidence; fp32, or fp16 as in a bundle.
        counters: streaming counters of the scenario.
        second_stage: networks that re-rank the best candidates.
        facts: prices of the items and words of their texts.
        neighbours: the newest sessions of all shoppers.
    """

    heads: Tensor
    global_preference: Tensor
    text: Tensor
    residuals: dict[str, Tensor]
    counters: Counters = field(default_factory=Counters)
    second_stage: SecondStage = field(default_factory=SecondStage.empty)
    facts: ItemFacts = field(default_factory=lambda: ItemFacts.unknown(0))
    neighbours: SessionNeighbours = field(default_factory=SessionNeighbours)

    @classmethod
    def empty(cls, dim: int) -> Ranker:
        """Return an untrained ranker without items for vectors of width `dim`."""
        heads = torch.tensor([INITIAL_WEIGHTS[name] for name in FEATURES])
        return cls(heads, torch.zeros(dim), torch.zeros(0, dim), {role: torch.zeros(0, dim) for role in ROLES})

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.text)

    def grow(self, size: int) -> None:
        """Extend to `size` items with zero text vectors, residuals and counts."""
        missing = size - len(self)
        if missing > 0:
            zeros = torch.zeros(missing, self.text.shape[1])
            self.text = torch.cat([self.text, zeros])
            self.residuals = {role: torch.cat([rows, zeros]) for role, rows in self.residuals.items()}
            self.counters.grow(size)
            self.neighbours.grow(size)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, text vectors and residuals; counters and sessions have states of their own."""
        return {
            "heads": self.heads,
            "global_preference": self.global_preference,
            "text": self.text,
            "residuals": dict(self.residuals),
            "second_stage": self.second_stage.tensors(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`; text vectors and residuals are used without a copy."""
        self.heads, self.global_preference = state["heads"].clone(), state["global_preference"].clone()
        self.text, self.residuals = state["text"], {role: state["residuals"][role] for role in ROLES}
        self.second_stage = SecondStage.from_tensors(state.get("second_stage", {})).clone()

    def gate(self, rows: IntArray | None = None) -> Tensor:
        """Return the weight of the residual in each item's vector, [items, 1]; of all items, or of `rows` [items]."""
        events = torch.from_numpy(self.counters.events if rows is None else self.counters.events[rows])
        return (events / (events + GATE_EVENTS))[:, None]

    def text_share(self, rows: IntArray | None = None) -> Tensor:
        """Return the share of the text in each item's vector, [items]; of all items, or of `rows` [items]."""
        share = 1 - self.gate()[:, 0]
        return share if rows is None else share[torch.from_numpy(rows)]

    def second_stage_features(self) -> SecondStageFeatures:
        """Return what computes the inputs that only the second stage uses; sessions and texts are not copied."""
        return SecondStageFeatures.of(self.counters, self.neighbours, self.facts, self.text.numpy())

    def vectors(self, role: str, rows: IntArray | None = None) -> Tensor:
        """Return unit item vectors [items, dim] of a role; of all items, or of `rows` [items]."""
        gate, residuals = self.gate(rows), self.residuals[role]
        if rows is not None:
            index = torch.from_numpy(rows)
            return _item_vectors(self.text.index_select(0, index), gate, residuals.index_select(0, index))
        return _item_vectors(self.text, gate, residuals)


def _item_vectors(text: Tensor, gate: Tensor, residuals: Tensor) -> Tensor:
    """Return `normalize(text + gate * residual)` [items, dim], in chunks so that residuals are not held twice.

    Args:
        text: [items, dim] text vectors.
        gate: [items, 1] weight of each item's residual.
        residuals: [items, dim] learnt residuals.
    """
    vectors = torch.empty_like(text)
    for start in range(0, len(text), _VECTORS_CHUNK):
        chunk = slice(start, start + _VECTORS_CHUNK)
        parts = (text[chunk], gate[chunk, 0], residuals[chunk].float(), vectors[chunk])
        vector_kernels.item_vectors(*(part.numpy() for part in parts))
    return vectors


class FrozenRanker:
    """An immutable snapshot of a ranker with precomputed item vectors, ready to score.

    Args:
        ranker: ranker to take the snapshot of.
        probabilities: weights that predict outcome probabilities; None if they are unknown.
        is_fixed: the ranker does not change any more, so vectors of a large catalogue may be computed on demand.

    Attributes:
        counters: snapshot of the counters.
        text_share: [items] share of the text in each item's vector.
        second_stage: snapshot of the networks.
        scorer: scores single contexts.
    """

    def __init__(
        self,
        ranker: Ranker,
        probabilities: Probabilities | None = None,
        *,
        is_fixed: bool = False,
    ) -> None:
        self.counters = ranker.counters.copy()
        # copies, because a learner changes its weights in place
        self._heads, self._global_preference = ranker.heads.clone(), ranker.global_preference.clone()
        self.second_stage = ranker.second_stage.clone()
        self.text_share = ranker.text_share()
        self._candidate_vectors = ranker.vectors("candidate")
        precompute = len(ranker) <= PRECOMPUTED_ITEMS or not is_fixed
        preference = self._candidate_vectors @ self._global_preference
        self.scorer = RequestScorer(
            counter_features=CounterFeatures.of(self.counters),
            second_stage_features=SecondStageFeatures.of(
                self.counters,
                ranker.neighbours if is_fixed else ranker.neighbours.copy(),
                ranker.facts,
                (ranker.text if is_fixed else ranker.text.clone()).numpy(),
            ),
            context_vectors=ContextVectors(
                ranker.vectors("query").numpy()
                if precompute
                else ItemVectors(ranker.text.numpy(), ranker.gate()[:, 0].numpy(), ranker.residuals["query"].numpy())
            ),
            candidate_vectors=self._candidate_vectors.numpy(),
            static_features=np.stack([preference.numpy(), self.text_share.numpy(), conversion(self.counters)]),
            weights=_weights(self._heads, probabilities),
            networks=self.second_stage.kernel() if self.second_stage.is_active else None,
        )

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._candidate_vectors)

    def candidate_vectors(self, rows: IntArray) -> Tensor:
        """Return unit vectors [rows, dim] of items in the candidate role."""
        return self._candidate_vectors[torch.from_numpy(rows)]

    @torch.inference_mode()
    def score(self, contexts: Contexts, columns: IntArray | None = None, query_vector: Tensor | None = None) -> Tensor:
        """Return scores [contexts, candidates]; of the whole catalogue, only the best reach the second stage.

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] sorted rows of the candidates; None is the whole catalogue.
            query_vector: [contexts, dim] unit vector of each context's search query under the adapter of the text
                vectors, zero without a query; None if no context has one.
        """
        if len(contexts) == 1:
            query = None if query_vector is None else query_vector.numpy()
            return torch.from_numpy(self.scorer.score(contexts, columns, query))[None]
        counted, affinities = self._features(contexts, columns, query_vector)
        scores = weighted_sum(self._heads, counted, affinities)
        if not self.second_stage.is_active:
            return scores

        def more(places: Tensor) -> Tensor:
            rows = places.numpy() if columns is None else columns[places.numpy()]
            return self._more(contexts, rows)

        return rerank(
            scores,
            self.second_stage,
            counted=counted,
            affinities=affinities,
            more=more,
            count=RERANKED if columns is None else len(columns),
        )

    def top_k(self, contexts: Contexts, rows: IntArray, count: int) -> tuple[IntArray, FloatArray]:
        """Return the `count` best rows for one context, best first, and their scores.

        Args:
            contexts: recent items of one shopper.
            rows: [candidates] sorted rows of the candidates.
            count: number of rows to return; fewer if there are fewer candidates.
        """
        return self.scorer.top_k(contexts, rows, count)

    def score_with_probabilities(
        self, context: Contexts, columns: IntArray | None = None, query_vector: FloatArray | None = None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return scores and outcome probabilities for one context.

        Args:
            context: recent items of one shopper.
            columns: [candidates] sorted rows of the candidates; None is the whole catalogue.
            query_vector: [1, dim] unit vector of the search query; None without one.

        Returns:
            scores [candidates], and by outcome the probability [candidates] of each candidate at the first position.
        """
        return self.scorer.score_with_probabilities(context, columns, query_vector)

    @torch.inference_mode()
    def features(
        self, contexts: Contexts, columns: IntArray | None = None, query_vector: Tensor | None = None
    ) -> Tensor:
        """Return features [FEATURES, contexts, candidates]; arguments as in `score`."""
        if len(contexts) == 1:
            query = None if query_vector is None else query_vector.numpy()
            return torch.from_numpy(self.scorer.features(contexts, columns, query))
        counted, affinities = self._features(contexts, columns, query_vector)
        expanded = torch.stack([affinity.expand(counted.shape[1:]) for affinity in affinities.features()])
        return pad_features(torch.cat([counted, expanded]))

    def second_stage_features(self, contexts: Contexts, columns: IntArray) -> Tensor:
        """Return the inputs that only the second stage uses, [SECOND_STAGE_FEATURES, contexts, candidates].

        Args:
            contexts: recent items of the shoppers.
            columns: [candidates] rows of the candidates.
        """
        return self._more(contexts, np.tile(columns, (len(contexts), 1)))

    def _more(self, contexts: Contexts, rows: IntArray) -> Tensor:
        """Return the second stage's further inputs of rows [contexts, candidates]."""
        values = self.scorer.second_stage_features.features(
            contexts,
            rows,
            query=self.scorer.context_vectors.table(contexts),
            candidate=VectorTable(self._candidate_vectors.numpy()),
        )
        return torch.from_numpy(values).transpose(0, 1)

    def _features(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None
    ) -> tuple[Tensor, Affinities]:
        """Return counter features [COUNTER_FEATURES, contexts, candidates], and the affinities."""
        parts = context_weights(contexts, len(self))
        counted = torch.from_numpy(self.scorer.counter_features.features(contexts, columns))
        rows = contexts.rows()
        weights = affinity_weights(parts, rows)
        index = slice(None) if columns is None else torch.from_numpy(columns)
        return counted, affinity_features(
            weights,
            torch.from_numpy(self.scorer.context_vectors(rows)),
            self._candidate_vectors[index],
            self._global_preference,
            self.text_share[index],
            query_vector,
        )


def _weights(heads: Tensor, probabilities: Probabilities | None) -> FloatArray:
    """Return the weights [1 + outcomes, INPUTS] of the first stage's score and of each outcome's log odds."""
    outcomes = () if probabilities is None else (weights for weights in probabilities if weights is not None)
    weights: FloatArray = torch.stack([torch.nn.functional.pad(heads, (0, INPUTS - len(heads))), *outcomes]).numpy()
    return weights


def text_evidence(events: FloatArray) -> float:
    """Return the text's share in items' vectors, summed over all events [items] of all items.

    The share at an item's event `n` is `1 - gate = 5 / (n + 5)`, which sums to `5 * log(1 + n / 5)`.

    >>> text_evidence(np.array([0.0, 1.0, 1_000.0], dtype=np.float32))
    27.428132324265153
    """
    return float(GATE_EVENTS * np.log1p(events.astype(np.float64) / GATE_EVENTS).sum())
