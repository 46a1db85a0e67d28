"""Features that a head scores candidates by: streaming counters and vector affinities.

Counter features are logarithms of popularity over uniform chance, `log(1 + items * share)`, and of conditional
probabilities, `log(1 + 100 * probability)`, so their scale does not depend on the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counter_kernels import LIFT_SCALE, PROBABILITY_SCALE, SMOOTHING_EVENTS
from peft_adapters.ranking.recency import (
    HISTORY_RECENCY,
    LAST_RECENCY,
    NEAR_RECENCY,
    PASSED_RECENCY,
    SESSION_RECENCY,
    Recency,
)
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE, ATTENTION_SHARPNESS, NO_ATTENTION
from peft_adapters.settings import COUNTER_FEATURES, FEATURES, NEW_AFFINITIES

# Weights of a head before its first event. Text affinities dominate, since nothing is counted yet. Signs of interest
# are positive; items of the current session are negative, against repetition. Learning soon changes them.
INITIAL_WEIGHTS = {
    "popularity_fast": 0.3,
    "popularity_slow": 0.3,
    "transition": 0.2,
    "skip_transition": 0.2,
    "session_cooccurrence": 0.5,
    "history_cooccurrence": 0.2,
    "neighbour_cooccurrence": 0.2,
    "repeat": 0.5,
    "session_lift": 0.0,
    "last_basket": 0.0,
    "in_session": -1.0,
    "click_through": 1.0,
    "never_sold": 0.0,
    "session_affinity": 6.0,
    "history_affinity": 3.0,
    "last_item_affinity": 3.0,
    "passed_over_affinity": 0.0,
    "session_affinity_squared": 0.0,
    "history_affinity_squared": 0.0,
    "last_item_affinity_squared": 0.0,
    "passed_over_affinity_squared": 0.0,
    "session_affinity_new": 0.0,
    "history_affinity_new": 0.0,
    "last_item_affinity_new": 0.0,
    "session_attention_new": 0.0,
    "global_preference": 1.0,
    "query_affinity": 10.0,
    "query_affinity_squared": 0.0,
}
# Initial weights of the list head, which predicts the clicks among the items of a list.
LIST_INITIAL_WEIGHTS = {
    "click_through": 1.0,
    "session_affinity": 1.0,
    "history_affinity": 1.0,
    "global_preference": 1.0,
    "query_affinity": 5.0,
}

_POPULARITY_SLOW, _SESSION_COOCCURRENCE = (
    COUNTER_FEATURES.index(name) for name in ("popularity_slow", "session_cooccurrence")
)
Vectors = TypeVar("Vectors", bound=Any)  # tensors or arrays


@dataclass(frozen=True, slots=True)
class ContextWeights:
    """Recency weights of the items of contexts: sparse [contexts, items]; the weights of each context sum to 1.

    Attributes:
        session: weights of the current session's items.
        near: weights of the newest items of the current session.
        history: weights of earlier sessions' items.
        last: weight of the newest item.
        passed: weights of items shown and not clicked.
    """

    session: sparse.csr_array
    near: sparse.csr_array
    history: sparse.csr_array
    last: sparse.csr_array
    passed: sparse.csr_array


def context_weights(contexts: Contexts, item_count: int) -> ContextWeights:
    """Return the recency weights of contexts over a catalogue of `item_count` items."""
    session, history = contexts.ages == 0, contexts.ages > 0
    items, passed = contexts.items, contexts.passed
    return ContextWeights(
        session=_recency(items, session, item_count, SESSION_RECENCY),
        near=_recency(items, session, item_count, NEAR_RECENCY),
        history=_recency(items, history, item_count, HISTORY_RECENCY),
        last=_recency(items, contexts.ages >= 0, item_count, LAST_RECENCY),
        passed=_recency(passed, passed >= 0, item_count, PASSED_RECENCY),
    )


def session_lift(features: FloatArray, items: int, total: float) -> FloatArray:
    """Return co-occurrence with the session over the square root of popularity, [...], which discounts popular items.

    The count of a pair over the square root of both items' counts is the cosine of item-based collaborative filtering
    (Sarwar et al. 2001). The conditional probability is already divided by the count of the session's item.

    Args:
        features: [COUNTER_FEATURES, ...] counter features before the logarithm.
        items: number of items in the catalogue.
        total: sum of the slow popularity of all items.
    """
    probability = features[_SESSION_COOCCURRENCE] / PROBABILITY_SCALE
    share = features[_POPULARITY_SLOW] / items + SMOOTHING_EVENTS / total
    lift: FloatArray = LIFT_SCALE * probability / np.sqrt(share)
    return lift


def pair_affinities(
    weights: Tensor,
    owner: Tensor,
    query: Tensor,
    candidates: Tensor,
    global_preference: Tensor,
    text_share: Tensor,
    query_vector: Tensor | None = None,
) -> Tensor:
    """Return the affinity features of (context, candidate) pairs, [affinities, pairs].

    Args:
        weights: [AFFINITIES, contexts, context rows] recency weights of the contexts' items.
        owner: [pairs] index of each pair's context.
        query: [context rows, dim] vectors of the contexts' items in the query role.
        candidates: [pairs, dim] vector of each pair's candidate.
        global_preference: [dim] preference vector shared by all shoppers.
        text_share: [pairs] share of the text in each candidate's vector.
        query_vector: [contexts, dim] vector of each context's search query, zero without one; None if no context has
            one.
    """
    products = list(((weights @ query)[:, owner] * candidates).sum(dim=-1))
    session = weights[0][owner]  # [pairs, context rows]
    similarity = candidates @ query.T
    strength = attention_strength(similarity)
    attention = (session * strength * similarity).sum(dim=1) / (session * strength).sum(dim=1).clamp(min=NO_ATTENTION)
    query_affinity = None if query_vector is None else (query_vector[owner] * candidates).sum(dim=-1)
    return torch.stack(affinities(products, attention, candidates @ global_preference, text_share, query_affinity))


def attention_strength(similarity: Tensor) -> Tensor:
    """Return the attention [...] that a candidate gives to an item at their cosine [...] (Zhou et al. 2018)."""
    return torch.exp(float(ATTENTION_SHARPNESS) * (similarity - 1))  # a cosine is at most 1


def affinities(
    products: Sequence[Vectors],
    attention: Vectors,
    preference: Vectors,
    text_share: Vectors,
    query_affinity: Vectors | None,
) -> tuple[Vectors, ...]:
    """Return the affinity features in the order of `AFFINITY_FEATURES`.

    The squares let a head fit that close texts are more informative than a linear fit predicts. The products with the
    text share let it weigh texts of new items more than those of items with evidence.

    Args:
        products: dot products [..., candidates] of the mean vectors of the contexts' parts with candidates.
        attention: [..., candidates] attention-weighted mean similarity to the session's items.
        preference: [..., candidates] dot product of the global preference with candidates.
        text_share: [..., candidates] share of the text in each candidate's vector.
        query_affinity: [..., candidates] dot product of the search query with candidates; None without queries.
    """
    text_weight = float(AFFINITY_SCALE) * text_share
    return (
        *products,
        *(float(AFFINITY_SCALE) * (product * product) for product in products),
        *(text_weight * product for product in products[: len(NEW_AFFINITIES)]),
        text_weight * attention,
        preference,
        *(() if query_affinity is None else _query_features(query_affinity)),
    )


def _query_features(query_affinity: Vectors) -> tuple[Vectors, Vectors]:
    return query_affinity, float(AFFINITY_SCALE) * (query_affinity * query_affinity)


def pad_features(features: Tensor) -> Tensor:
    """Return features [features, ...] extended to [FEATURES, ...] with zeros for omitted query features."""
    missing = len(FEATURES) - len(features)
    return torch.cat([features, features.new_zeros(missing, *features.shape[1:])]) if missing else features


def affinity_weights(weights: ContextWeights, rows: IntArray) -> Tensor:
    """Return the dense weights [AFFINITIES, contexts, rows] of the context items `rows` in each affinity."""
    parts = (weights.session, weights.history, weights.last, weights.passed)
    return torch.from_numpy(np.stack([part[:, rows].toarray() for part in parts]))


def _recency(items: IntArray, selected: Any, item_count: int, recency: Recency) -> sparse.csr_array:
    """Return sparse recency weights [contexts, items] of the newest selected items; each row sums to 1."""
    rank = np.cumsum(selected, axis=1) - 1
    row, column = np.nonzero(selected & (rank < recency.limit))
    weight = (recency.decay ** rank[row, column]).astype(np.float32)
    weight /= np.bincount(row, weight, len(items))[row].astype(np.float32)
    # The conversion to CSR adds up repeated items of a context.
    return sparse.csr_array((weight, (row, items[row, column])), shape=(len(items), item_count))
