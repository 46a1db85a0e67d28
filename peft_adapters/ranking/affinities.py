"""Affinities of a batch of contexts with the same candidates, and scores, computed by compiled loops.

A context's items are compared with candidates in two ways. Items of the session and the last item are compared one by
one, because attention needs each similarity, and a batch's events share most of these items. Of earlier sessions' items
and of passed-over items only the mean vector is compared, because there may be very many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import affinity_kernels, features
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.settings import FEATURES

_KernelParts = tuple[FloatArray, FloatArray, IntArray, IntArray]


class ContextParts:
    """Rows of contexts' vectors that are compared with candidates, and which context uses which.

    Args:
        weights: [AFFINITIES, contexts, context rows] recency weights of the contexts' items.
    """

    def __init__(self, weights: Tensor) -> None:
        session, history, last, passed = weights
        direct = torch.nonzero(session.any(dim=0) | last.any(dim=0))[:, 0]
        self._direct, self._means = direct, []
        places: list[IntArray] = []
        rows = len(direct)
        for part in (history, passed):
            used = part.any(dim=1)
            self._means.append(part[used])
            places.append(np.where(used.numpy(), rows - 1 + used.cumsum(dim=0).numpy(), -1))
            rows += len(self._means[-1])
        self.direct_rows = len(direct)
        self.kernel: _KernelParts = (session[:, direct].numpy(), last[:, direct].numpy(), *places)

    def vectors(self, query: Tensor) -> Tensor:
        """Return the vectors [rows, dim] that are compared with candidates, differentiable.

        Args:
            query: [context rows, dim] vectors of the contexts' items in the query role.
        """
        return torch.cat([query[self._direct], *(part @ query for part in self._means if len(part))])


class Affinities(NamedTuple):
    """Affinities of contexts with candidates: what the affinity features are computed from.

    Attributes:
        products: [AFFINITIES, contexts, candidates] dot products with the mean vectors of the contexts' parts.
        attention: [contexts, candidates] attention-weighted mean similarity to the session's items.
        preference: [candidates] dot product with the global preference.
        text_share: [candidates] share of the text in each candidate's vector.
        query: [contexts, candidates] dot product with the search query; None if no context has one.
    """

    products: Tensor
    attention: Tensor
    preference: Tensor
    text_share: Tensor
    query: Tensor | None

    def features(self) -> tuple[Tensor, ...]:
        """Return the affinity features in order, each [contexts, candidates], or [candidates] if equal in all contexts.

        Without search queries the last features, `QUERY_FEATURES`, are omitted: they are zero.
        """
        return features.affinities([*self.products], self.attention, self.preference, self.text_share, self.query)

    def kernel(self) -> tuple[FloatArray, ...]:
        """Return the arrays that the compiled loops take."""
        query = self.attention[:0] if self.query is None else self.query
        values = (self.products, self.attention, self.preference, self.text_share, query)
        return tuple(value.detach().contiguous().numpy() for value in values)


class Similarities(NamedTuple):
    """Similarities of contexts' vectors and candidates, as `similarity_gradient` needs them.

    Attributes:
        parts: the contexts' parts.
        similarity: [rows, candidates] dot products.
        strength: [direct rows, candidates] attention of each candidate to each item that is compared by itself.
        totals: [contexts, candidates] total weights of the attention.
    """

    parts: ContextParts
    similarity: Tensor
    strength: Tensor
    totals: Tensor


def mix(parts: ContextParts, similarity: Tensor) -> tuple[Tensor, Tensor, Similarities]:
    """Return products [AFFINITIES, contexts, candidates] and attention [contexts, candidates], not differentiable.

    Args:
        parts: the contexts' parts.
        similarity: [rows, candidates] dot products of `parts.vectors` with candidates.
    """
    similarity = similarity.detach()
    strength = features.attention_strength(similarity[: parts.direct_rows])
    shape = (len(parts.kernel[0]), similarity.shape[1])
    products, attention, totals = torch.zeros(4, *shape), torch.zeros(shape), torch.zeros(shape)
    arrays = (value.numpy() for value in (similarity, strength, products, attention, totals))
    affinity_kernels.mix(parts.kernel, *arrays)
    return products, attention, Similarities(parts, similarity, strength, totals)


def affinity_features(
    weights: Tensor,
    query: Tensor,
    candidates: Tensor,
    global_preference: Tensor,
    text_share: Tensor,
    query_vector: Tensor | None = None,
) -> Affinities:
    """Return affinities, not differentiable.

    Args:
        weights: [AFFINITIES, contexts, context rows] recency weights of the contexts' items.
        query: [context rows, dim] vectors of the contexts' items in the query role.
        candidates: [candidates, dim] vectors of the candidates in the candidate role.
        global_preference: [dim] preference vector shared by all shoppers.
        text_share: [candidates] share of the text in each candidate's vector.
        query_vector: [contexts, dim] vector of each context's search query, zero without one; None if no context has
            one.
    """
    parts = ContextParts(weights)
    products, attention, _ = mix(parts, parts.vectors(query) @ candidates.T)
    query_affinity = None if query_vector is None else query_vector @ candidates.T
    return Affinities(products, attention, candidates @ global_preference, text_share, query_affinity)


def weighted_sum(heads: Tensor, counter_features: Tensor, affinities: Affinities) -> Tensor:
    """Return scores [contexts, candidates], not differentiable.

    Args:
        heads: [FEATURES] weights of the features.
        counter_features: [COUNTER_FEATURES, contexts, candidates] counter features of the candidates.
        affinities: affinities of the same contexts with the same candidates.
    """
    scores = torch.empty_like(affinities.attention)
    affinity_kernels.scores(
        heads.detach().numpy(), counter_features.contiguous().numpy(), affinities.kernel(), scores.numpy()
    )
    return scores


def heads_gradient(gradient: Tensor, counter_features: Tensor, affinities: Affinities) -> Tensor:
    """Return the gradient [FEATURES] of the weights.

    Args:
        gradient: [contexts, candidates] gradient of the scores.
        counter_features: as in `weighted_sum`.
        affinities: as in `weighted_sum`.
    """
    out = torch.zeros(len(FEATURES))
    affinity_kernels.heads_gradient(
        gradient.contiguous().numpy(), counter_features.contiguous().numpy(), affinities.kernel(), out.numpy()
    )
    return out


def similarity_gradient(heads: Tensor, gradient: Tensor, affinities: Affinities, similarities: Similarities) -> Tensor:
    """Return the gradient [rows, candidates] of the similarities.

    Args:
        heads: [FEATURES] weights of the features.
        gradient: [contexts, candidates] gradient of the scores.
        affinities: as in `weighted_sum`.
        similarities: the similarities that `affinities` were computed from.
    """
    out = torch.zeros_like(similarities.similarity)
    affinity_kernels.similarity_gradient(
        heads.detach().numpy(),
        gradient.contiguous().numpy(),
        similarities.parts.kernel,
        similarities.similarity.numpy(),
        similarities.strength.numpy(),
        affinities.kernel(),
        similarities.totals.numpy(),
        out.numpy(),
    )
    return out
