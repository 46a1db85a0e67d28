"""Differentiable features of a step's candidates, and their scores; loops forward and backward are compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, take_columns
from peft_adapters.learning.lora_replay import LoraBatch
from peft_adapters.ranking import affinities, vector_kernels
from peft_adapters.ranking.affinities import Affinities, ContextParts, Similarities
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.ranker import Ranker
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE
from peft_adapters.settings import FEATURES

_PREFERENCE, _QUERY = FEATURES.index("global_preference"), FEATURES.index("query_affinity")


class Side:
    """Item vectors of one role in a step, differentiable in the residuals and in live text vectors.

    Args:
        ranker: present weights and counters.
        role: `query` or `candidate`.
        rows: [rows] sorted, distinct catalogue rows.
        live_rows: [live rows] sorted rows whose text vectors are given in `live`; those of others are constant.
        live: [live rows, dim] differentiable text vectors.
    """

    def __init__(
        self,
        ranker: Ranker,
        role: str,
        rows: IntArray,
        *,
        live_rows: IntArray | None = None,
        live: Tensor | None = None,
    ) -> None:
        self.role, self.rows = role, rows
        index = torch.from_numpy(rows)
        self.residual = ranker.residuals[role].index_select(0, index).requires_grad_()
        self.text_share = ranker.text_share(rows)
        text = ranker.text.index_select(0, index)
        if live_rows is not None and live is not None:
            _, here, there = np.intersect1d(rows, live_rows, assume_unique=True, return_indices=True)
            text = text.index_copy(0, torch.from_numpy(here), live[torch.from_numpy(there)])
        vectors: Tensor = _ItemVectors.apply(text, ranker.gate(rows), self.residual)  # type: ignore[no-untyped-call]
        self.vectors = vectors


class _ItemVectors(torch.autograd.Function):
    """Unit item vectors, `text + gate * residual` over its norm, with gradients to texts and residuals."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
        """Return vectors [items, dim]."""
        vectors = torch.empty_like(text)
        ctx.inputs = tuple(part.detach().numpy() for part in (text, gate[:, 0], residual))
        arrays = (*ctx.inputs, vectors.numpy())
        vector_kernels.item_vectors(*arrays)
        return vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor]:
        """Return the gradients of the texts, None if they are constant, and of the residuals, [items, dim] each."""
        (gradient,) = gradients
        of_text, of_residual = torch.empty_like(gradient), torch.empty_like(gradient)
        arrays = (*ctx.inputs, gradient.contiguous().numpy(), of_text.numpy(), of_residual.numpy())
        vector_kernels.item_vectors_gradient(*arrays)
        return of_text if ctx.needs_input_grad[0] else None, None, of_residual


class Features(NamedTuple):
    """Features of the candidates of a step, by which they are scored.

    Attributes:
        counted: [COUNTER_FEATURES, events, candidates] counter features.
        affinities: affinities; `preference` and `query` are differentiable, the others follow from `similarity`.
        similarity: [rows, candidates] similarities of the contexts' vectors and the candidates, differentiable.
        similarities: what the gradient of `similarity` is computed from.
    """

    counted: Tensor
    affinities: Affinities
    similarity: Tensor
    similarities: Similarities

    def detach(self) -> Features:
        """Return the features without gradients."""
        preference, query = self.affinities.preference.detach(), self.affinities.query
        constant = self.affinities._replace(preference=preference, query=None if query is None else query.detach())
        return self._replace(affinities=constant, similarity=self.similarity.detach())


def positives_features(batch: Batch | LoraBatch, global_preference: Tensor, query: Side, candidate: Side) -> Features:
    """Return the features of the candidates, differentiable in both sides and in the preference vector.

    Args:
        batch: micro-batch as `observe` returned it.
        global_preference: [dim] preference vector of all shoppers.
        query: vectors of the contexts' items.
        candidate: vectors of the candidates.
    """
    parts = ContextParts(batch.affinity_weights)
    similarity = parts.vectors(query.vectors) @ candidate.vectors.T
    products, attention, similarities = affinities.mix(parts, similarity)
    query_affinity = None if batch.query_vector is None else batch.query_vector @ candidate.vectors.T
    preference = candidate.vectors @ global_preference
    return Features(
        _counter_features(batch, candidate.rows),
        Affinities(products, attention, preference, candidate.text_share, query_affinity),
        similarity,
        similarities,
    )


def _counter_features(batch: Batch | LoraBatch, rows: IntArray) -> Tensor:
    """Return the counter features [COUNTER_FEATURES, events, candidates] of some rows; all columns without a copy."""
    if batch.columns is None:
        return take_columns(batch.counter_features, rows)
    if np.array_equal(batch.columns, rows):
        return batch.counter_features
    return take_columns(batch.counter_features, np.searchsorted(batch.columns, rows))


class _Scores(torch.autograd.Function):
    """Scores of features, with gradients to the weights, similarities, preference and affinities to the query."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, similarity: Tensor, preference: Tensor, query: Tensor | None, features: Features
    ) -> Tensor:
        """Return scores [events, candidates]."""
        ctx.save_for_backward(heads, query)
        ctx.features = features.detach()
        return affinities.weighted_sum(heads, *ctx.features[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; those that nothing needs are None."""
        (gradient,) = gradients
        heads, query = ctx.saved_tensors
        features: Features = ctx.features
        needs = ctx.needs_input_grad
        of_heads = affinities.heads_gradient(gradient, *features[:2]) if needs[0] else None
        of_similarity = of_preference = of_query = None
        if needs[1]:
            of_similarity = affinities.similarity_gradient(heads, gradient, features.affinities, features.similarities)
        if needs[2]:
            of_preference = heads[_PREFERENCE] * gradient.sum(dim=0)
        if needs[3]:
            of_query = gradient * (heads[_QUERY] + 2 * float(AFFINITY_SCALE) * heads[_QUERY + 1] * query)
        return of_heads, of_similarity, of_preference, of_query, None


def feature_scores(heads: Tensor, features: Features) -> Tensor:
    """Return scores [events, candidates], differentiable in the weights and in the features.

    Args:
        heads: [FEATURES] weights of the score.
        features: features of the candidates.
    """
    inputs = (features.similarity, features.affinities.preference, features.affinities.query, features)
    result: Tensor = _Scores.apply(heads, *inputs)  # type: ignore[no-untyped-call]
    return result
