"""What a head scores a candidate by: streaming counters and vector affinities, one array of features a context.

Counter features are logarithms: of popularity over uniform chance, `log(1 + items * share)`, and of conditional
probabilities, `log(1 + 100 * probability)`, so that their scale does not depend on the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from peft_adapters.ranking.counters import Counters, FloatArray, IntArray
from peft_adapters.ranking.kernels import (
    AFFINITY_SCALE,
    ATTENTION_SHARPNESS,
    LIFT_SCALE,
    NO_ATTENTION,
    PROBABILITY_SCALE,
)
from peft_adapters.ranking.recency import (
    HISTORY_RECENCY,
    LAST_RECENCY,
    NEAR_RECENCY,
    PASSED_RECENCY,
    SESSION_RECENCY,
    Recency,
)
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES, FEATURES, NEW_AFFINITIES

# Where a head starts before it has seen an event: with what texts say, since nothing is counted yet; signs of interest
# count for, and the session at hand against showing the same again. The learner moves them within a few batches.
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
# The same for the head of lists: what is clicked among what is shown.
LIST_INITIAL_WEIGHTS = {
    "click_through": 1.0,
    "session_affinity": 1.0,
    "history_affinity": 1.0,
    "global_preference": 1.0,
    "query_affinity": 5.0,
}

SMOOTHING_EVENTS = 5.0
_SMOOTHING_SHOWN = 10.0
_SMOOTHING_CLICKED = 10.0
_POPULARITY_SLOW, _SESSION_COOCCURRENCE = (
    COUNTER_FEATURES.index(name) for name in ("popularity_slow", "session_cooccurrence")
)
Vectors = TypeVar("Vectors", bound=Any)  # tensors, or arrays


@dataclass(frozen=True, slots=True)
class ContextWeights:
    """How much each item of a context counts: sparse [contexts, items], every row that is not empty sums to 1."""

    session: sparse.csr_array
    near: sparse.csr_array
    history: sparse.csr_array
    last: sparse.csr_array
    passed: sparse.csr_array


def context_weights(contexts: Contexts, item_count: int) -> ContextWeights:
    """Recency weights of the items of contexts, by part of the context."""
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
    """Co-occurrence with the session over the root of popularity, [...]: what belongs together without being popular.

    Counted pairs over the root of both items' counts is the cosine of item-based collaborative filtering (Sarwar et al.
    2001); an item of the session has its count under its conditional probability already.

    Args:
        features: [COUNTER_FEATURES, ...] before the logarithm.
        items: size of the catalogue.
        total: slow popularity of all items.
    """
    probability = features[_SESSION_COOCCURRENCE] / PROBABILITY_SCALE
    share = features[_POPULARITY_SLOW] / items + SMOOTHING_EVENTS / total
    lift: FloatArray = LIFT_SCALE * probability / np.sqrt(share)
    return lift


def click_through(counters: Counters) -> FloatArray:
    """Log ratio of each item's click-through to the mean, [items], smoothed; 0 where nothing was shown."""
    mean = max(float(counters.clicked.sum()), 1.0) / max(float(counters.shown.sum()), 1.0)
    lift = (counters.clicked / mean + _SMOOTHING_SHOWN) / (counters.shown + _SMOOTHING_SHOWN)
    return np.log(lift).astype(np.float32)


def conversion(counters: Counters) -> FloatArray:
    """Log ratio of each item's purchases over clicks in lists to the mean, [items], smoothed; 0 without purchases."""
    if not counters.bought.any():
        return np.zeros_like(counters.bought)
    mean = float(counters.bought.sum()) / max(float(counters.clicked.sum()), 1.0)
    lift = (counters.bought / mean + _SMOOTHING_CLICKED) / (counters.clicked + _SMOOTHING_CLICKED)
    return np.log(lift).astype(np.float32)


def affinity_features(
    weights: Tensor,
    query: Tensor,
    candidates: Tensor,
    global_preference: Tensor,
    text_share: Tensor,
    query_vector: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Affinity features in their order, each [contexts, candidates] or one for all contexts, [candidates].

    Where nobody searched in words the last ones, `QUERY_FEATURES`, are left out: they are zero.

    Args:
        weights: [AFFINITIES, contexts, context rows] of the contexts' items.
        query: [context rows, dim] their vectors when they were looked at.
        candidates: [candidates, dim].
        global_preference: [dim] what all shoppers like.
        text_share: [candidates] how far text speaks for each.
        query_vector: [contexts, dim] vectors of what was searched for, zero where nothing was.
    """
    used = weights[0].any(dim=0)
    session = weights[0][:, used]
    if _by_similarities(weights.shape, session_rows=session.shape[1], dim=query.shape[1]):
        similarities = query @ candidates.T  # [context rows, candidates]
        products = [_product(own, similarities) for own in weights]
        similarity = similarities[used]
    else:
        products = [_product(own @ query, candidates.T) for own in weights]
        similarity = query[used] @ candidates.T  # [session rows, candidates]
    attention = attended(session, similarity)
    sought = None if query_vector is None else query_vector @ candidates.T
    return affinities(products, attention, candidates @ global_preference, text_share, sought)


def pair_affinities(
    weights: Tensor,
    owner: Tensor,
    query: Tensor,
    candidates: Tensor,
    global_preference: Tensor,
    text_share: Tensor,
    query_vector: Tensor | None = None,
) -> Tensor:
    """The same for pairs of one context and one candidate each, [affinities, pairs].

    Args:
        weights: as above.
        owner: [pairs] the context of each.
        query: as above.
        candidates: [pairs, dim].
        global_preference: [dim].
        text_share: [pairs].
        query_vector: [contexts, dim] as above.
    """
    products = list(((weights @ query)[:, owner] * candidates).sum(dim=-1))
    session = weights[0][owner]  # [pairs, context rows]
    similarity = candidates @ query.T
    strength = attention_strength(similarity)
    attention = (session * strength * similarity).sum(dim=1) / (session * strength).sum(dim=1).clamp(min=NO_ATTENTION)
    sought = None if query_vector is None else (query_vector[owner] * candidates).sum(dim=-1)
    return torch.stack(affinities(products, attention, candidates @ global_preference, text_share, sought))


def _by_similarities(shape: Sequence[int], *, session_rows: int, dim: int) -> bool:
    """Whether affinities cost less by way of all similarities than by way of contexts' mean vectors.

    Events of one batch share most of their items; one shopper with a long history has more items than mean vectors.
    """
    affinities, contexts, rows = shape
    return (rows - session_rows) * dim + affinities * contexts * rows < affinities * contexts * dim


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Their product, for nothing where the left side is zero: few streams know what was passed over."""
    return left @ right if left.any() else left.new_zeros(left.shape[0], right.shape[1])


def attended(session: Tensor, similarity: Tensor) -> Tensor:
    """What the items of sessions say of candidates, each as strongly as it is looked at, [contexts, candidates].

    Args:
        session: [contexts, session rows] weights.
        similarity: [session rows, candidates].
    """
    strength = attention_strength(similarity)
    return (session @ (strength * similarity)) / (session @ strength).clamp(min=NO_ATTENTION)


def attention_strength(similarity: Tensor) -> Tensor:
    """How strongly an item is looked at for a candidate (target attention; Zhou et al. 2018), of their cosine."""
    return torch.exp(float(ATTENTION_SHARPNESS) * (similarity - 1))  # cosines: never above 1


def affinities(
    products: Sequence[Vectors], attention: Vectors, liked: Vectors, text_share: Vectors, sought: Vectors | None
) -> tuple[Vectors, ...]:
    """Dot products, scaled squares of them, the same and attention as far as text speaks, preference, query.

    Close texts say more than a straight line through all pairs would have it: the square lets a head bend it. And they
    say more of what is new than of what has been learnt: the share of text lets a head tell the two apart.
    """
    new = float(AFFINITY_SCALE) * text_share
    return (
        *products,
        *(float(AFFINITY_SCALE) * (own * own) for own in products),
        *(new * own for own in products[: len(NEW_AFFINITIES)]),
        new * attention,
        liked,
        *(() if sought is None else (sought, float(AFFINITY_SCALE) * (sought * sought))),
    )


def pad_features(features: Tensor) -> Tensor:
    """All features [FEATURES, ...] of those [features, ...] where what nobody searched for is left out."""
    missing = len(FEATURES) - len(features)
    return torch.cat([features, features.new_zeros(missing, *features.shape[1:])]) if missing else features


def weighted_sum(heads: Tensor, counter_features: Tensor, affinities: Sequence[Tensor]) -> Tensor:
    """Scores [...] of counter features [COUNTER_FEATURES, ...] and affinities; they are never put side by side.

    A copy of all features in one piece would cost more than everything else that a score takes. Features that are left
    out are the last ones, and zero.
    """
    own = len(COUNTER_FEATURES)
    scores = torch.einsum("f...,f->...", counter_features, heads[:own])
    for weight, affinity in zip(heads[own : own + len(affinities)], affinities, strict=True):
        scores = torch.addcmul(scores, affinity, weight)
    return scores


def affinity_weights(weights: ContextWeights, rows: IntArray) -> Tensor:
    """Weights of the context items `rows` in each affinity, dense [AFFINITIES, contexts, rows]."""
    parts = (weights.session, weights.history, weights.last, weights.passed)
    return torch.from_numpy(np.stack([part[:, rows].toarray() for part in parts]))


def _recency(items: IntArray, selected: Any, item_count: int, recency: Recency) -> sparse.csr_array:
    """Weights of the newest selected items, each row scaled to sum 1."""
    rank = np.cumsum(selected, axis=1) - 1
    row, column = np.nonzero(selected & (rank < recency.limit))
    weight = (recency.decay ** rank[row, column]).astype(np.float32)
    weight /= np.bincount(row, weight, len(items))[row].astype(np.float32)
    return _by_item(items, row, column, weight, item_count)


def _by_item(items: IntArray, row: Any, column: Any, values: FloatArray, item_count: int) -> sparse.csr_array:
    # The conversion to CSR adds up repeated items of a context.
    return sparse.csr_array((values, (row, items[row, column])), shape=(len(items), item_count))
