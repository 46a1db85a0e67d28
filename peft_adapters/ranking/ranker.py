"""The ranker: all that a score follows from, and the score.

`z_i = normalize(text_i + gate_i * residual_i)`, kept in two roles: what an item says when it was just looked at
(query) and when it is a candidate. The gate `n / (n + 5)` of an item with `n` events lets text speak for what is new
and lets the residual take over as evidence comes in. The score is a head's weighted sum of counter and affinity
features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import kernels
from peft_adapters.ranking.calibration import Probabilities
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import Counters, FloatArray, IntArray
from peft_adapters.ranking.features import (
    INITIAL_WEIGHTS,
    affinity_features,
    affinity_weights,
    context_weights,
    conversion,
    pad_features,
    weighted_sum,
)
from peft_adapters.ranking.request_scorer import QueryVectors, RequestScorer
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.tensor_rules import ROLES as ROLES
from peft_adapters.settings import FEATURES

_VECTORS_CHUNK = 1_024  # items whose vectors are made at a time: fresh memory costs more than sums do
QUERY_ITEMS = 50_000  # of a larger catalogue, the vectors of a context's items are made when they are asked for
GATE_EVENTS = 5.0  # an item's residual counts half after this many events


@dataclass(slots=True)
class Ranker:
    """Weights and counters of one scenario at one moment.

    Attributes:
        heads: [features] weights of the score.
        global_preference: [dim] what all shoppers like: its product with an item's vector is a feature.
        text: [items, dim] unit text vectors under the current adapter.
        residuals: by role [items, dim], zero for an item never learnt; single precision, or as a bundle has them, half.
        counters: the streaming counters.
    """

    heads: Tensor
    global_preference: Tensor
    text: Tensor
    residuals: dict[str, Tensor]
    counters: Counters = field(default_factory=Counters)

    @classmethod
    def empty(cls, dim: int) -> Ranker:
        """A ranker of no items that has learnt nothing."""
        heads = torch.tensor([INITIAL_WEIGHTS[name] for name in FEATURES])
        return cls(heads, torch.zeros(dim), torch.zeros(0, dim), {role: torch.zeros(0, dim) for role in ROLES})

    def __len__(self) -> int:
        """Items."""
        return len(self.text)

    def grow(self, size: int) -> None:
        """Make room for `size` items: no text yet, zero residuals, zero counts."""
        missing = size - len(self)
        if missing > 0:
            blank = torch.zeros(missing, self.text.shape[1])
            self.text = torch.cat([self.text, blank])
            self.residuals = {role: torch.cat([rows, blank]) for role, rows in self.residuals.items()}
            self.counters.grow(size)

    def gate(self, rows: IntArray | None = None) -> Tensor:
        """Share of the residual in each item's vector, [items, 1]; of all, or of some rows alone."""
        events = torch.from_numpy(self.counters.events if rows is None else self.counters.events[rows])
        return (events / (events + GATE_EVENTS))[:, None]

    def text_share(self, rows: IntArray | None = None) -> Tensor:
        """How far text speaks for each item, [items]; of some rows alone where only those are asked for."""
        share = 1 - self.gate()[:, 0]
        return share if rows is None else share[torch.from_numpy(rows)]

    def vectors(self, role: str, rows: IntArray | None = None) -> Tensor:
        """Item vectors of a role, unit length [items, dim]; of some rows alone where only those are asked for."""
        gate, residuals = self.gate(rows), self.residuals[role]
        if rows is not None:
            which = torch.from_numpy(rows)
            return _unit(self.text[which], gate, residuals[which])
        return _unit(self.text, gate, residuals)


def _unit(text: Tensor, gate: Tensor, residuals: Tensor) -> Tensor:
    """`normalize(text + gate * residual)`, rows at a time: a catalogue of residuals is not held twice."""
    vectors = torch.empty_like(text)
    for start in range(0, len(text), _VECTORS_CHUNK):
        chunk = slice(start, start + _VECTORS_CHUNK)
        parts = (text[chunk], gate[chunk, 0], residuals[chunk].float(), vectors[chunk])
        kernels.unit(*(part.numpy() for part in parts))
    return vectors


class FrozenRanker:
    """A ranker made ready to answer: item vectors computed, nothing in it changes any more.

    Args:
        ranker: which.
        probabilities: what says how likely outcomes are, where that is known.
        is_fixed: nobody changes `ranker` any more: of a large one not all vectors need to be made beforehand.

    Attributes:
        counters: as they stood.
        text_share: [items] how far text speaks for each.
    """

    def __init__(
        self,
        ranker: Ranker,
        probabilities: Probabilities | None = None,
        *,
        is_fixed: bool = False,
    ) -> None:
        self.counters = ranker.counters.copy()
        self._heads, self._global_preference = (
            ranker.heads.clone(),
            ranker.global_preference.clone(),
        )  # a learner moves them in place
        self.text_share = ranker.text_share()
        converted = torch.from_numpy(conversion(self.counters))
        self._counted = CounterFeatures(self.counters)
        self._candidate = ranker.vectors("candidate")
        few = len(ranker) <= QUERY_ITEMS or not is_fixed
        self._query = QueryVectors(ranker.vectors("query") if few else partial(ranker.vectors, "query"))
        self._one = RequestScorer(
            self._counted,
            query=self._query,
            candidate=self._candidate,
            standing=(self._candidate @ self._global_preference, self.text_share, converted),
            heads=self._heads,
            probabilities=probabilities,
        )

    def __len__(self) -> int:
        """Items."""
        return len(self._candidate)

    def candidate_vectors(self, rows: IntArray) -> Tensor:
        """Unit vectors [rows, dim] of items as candidates."""
        return self._candidate[torch.from_numpy(rows)]

    @torch.inference_mode()
    def score(self, contexts: Contexts, columns: IntArray | None = None, query_vector: Tensor | None = None) -> Tensor:
        """Scores [contexts, candidates].

        Args:
            contexts: who asks.
            columns: [candidates] sorted rows of the candidates; None is the whole catalogue.
            query_vector: [contexts, dim] unit vector of each context's search query under the adapter of the text
                vectors, zero without a query; None if no context has one.
        """
        if len(contexts) == 1:
            return torch.from_numpy(self._one.score(contexts, columns, query_vector))[None]
        return weighted_sum(self._heads, *self._features(contexts, columns, query_vector))

    def top_k(self, contexts: Contexts, rows: IntArray, count: int) -> tuple[IntArray, FloatArray]:
        """The `count` best of some sorted rows for one context, the best first, and their scores."""
        return self._one.top_k(contexts, rows, count)

    def score_with_probabilities(
        self, context: Contexts, columns: IntArray | None = None, query_vector: Tensor | None = None
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The same scores for one context, and by outcome the probability of each that is shown in the first place.

        Returns:
            scores [candidates], and probabilities [candidates].
        """
        return self._one.score_with_probabilities(context, columns, query_vector)

    @torch.inference_mode()
    def features(
        self, contexts: Contexts, columns: IntArray | None = None, query_vector: Tensor | None = None
    ) -> Tensor:
        """Features [FEATURES, contexts, candidates]."""
        if len(contexts) == 1:
            return self._one.features(contexts, columns, query_vector)
        counted, affinities = self._features(contexts, columns, query_vector)
        return pad_features(torch.cat([counted, torch.stack([own.expand(counted.shape[1:]) for own in affinities])]))

    def _features(
        self, contexts: Contexts, columns: IntArray | None, query_vector: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Counter features [COUNTER_FEATURES, contexts, candidates], and affinities."""
        parts = context_weights(contexts, len(self))
        counted = self._counted.features(contexts, columns)
        rows = contexts.rows()
        weights = affinity_weights(parts, rows)
        chosen = slice(None) if columns is None else torch.from_numpy(columns)
        return counted, affinity_features(
            weights,
            self._query(rows),
            self._candidate[chosen],
            self._global_preference,
            self.text_share[chosen],
            query_vector,
        )


def text_evidence(events: FloatArray) -> float:
    """How many events the texts of items spoke for: the sum over items of the text's share at each of their events.

    The share at an item's event `n` is `1 - gate = 5 / (n + 5)`, and `5 * log(1 + n / 5)` what it sums to.

    >>> text_evidence(np.array([0.0, 1.0, 1_000.0], dtype=np.float32))
    27.428132324265153
    """
    return float(GATE_EVENTS * np.log1p(events.astype(np.float64) / GATE_EVENTS).sum())
