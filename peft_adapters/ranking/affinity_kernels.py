"""Compiled loops of a batch's affinities and scores, forward and backward.

As tensor operations, these sums would write some thirty arrays of [contexts, candidates] to memory and read them again,
which takes several times as long as the arithmetic. Here each row of candidates stays in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE, ATTENTION_SHARPNESS, NO_ATTENTION, add_scaled, dot
from peft_adapters.settings import AFFINITIES, COUNTER_FEATURES, NEW_AFFINITIES

# Positions of the affinity features among all features, in the order of `settings.FEATURES`
_PRODUCTS = len(COUNTER_FEATURES)
_SQUARES = _PRODUCTS + len(AFFINITIES)
_NEW = _SQUARES + len(AFFINITIES)
_ATTENTION = _NEW + len(NEW_AFFINITIES)
_PREFERENCE = _ATTENTION + 1
_QUERY = _PREFERENCE + 1


@compiled
def mix(parts: Any, similarity: Any, strength: Any, products: Any, attention: Any, totals: Any) -> None:
    """Write the contexts' products and attention.

    Args:
        parts: weights [contexts, direct rows] of the sessions' items and of the last items; row of `similarity`
            [contexts] of each context's history and of its passed-over items, -1 without any.
        similarity: [rows, candidates] dot products of contexts' vectors with candidates; direct rows come first.
        strength: [direct rows, candidates] attention of each candidate to each direct row.
        products: [4, contexts, candidates] zeros to fill: products with session, history, last item and passed-over.
        attention: [contexts, candidates] zeros to fill: attention-weighted mean similarity to the session's items.
        totals: [contexts, candidates] zeros to fill: weights that this mean is divided by.
    """
    session, last, history, passed = parts
    for context in range(len(session)):
        mean, total = attention[context], totals[context]
        total[:] = np.float32(NO_ATTENTION)
        for row in range(session.shape[1]):
            if session[context, row] != 0:
                _attend(session[context, row], similarity[row], strength[row], products[0, context], mean, total)
            if last[context, row] != 0:
                add_scaled(last[context, row], similarity[row], products[2, context])
        for candidate in range(len(mean)):
            mean[candidate] /= total[candidate]
        if history[context] >= 0:
            products[1, context] = similarity[history[context]]
        if passed[context] >= 0:
            products[3, context] = similarity[passed[context]]


@compiled
def _attend(weight: Any, similarity: Any, strength: Any, product: Any, attention: Any, total: Any) -> None:
    """Add an item's share of the session's product [candidates], attention and total weight."""
    for candidate in range(len(similarity)):
        attended = weight * strength[candidate]
        product[candidate] += weight * similarity[candidate]
        attention[candidate] += attended * similarity[candidate]
        total[candidate] += attended


@compiled
def scores(heads: Any, counted: Any, affinities: Any, out: Any) -> None:
    """Write the weighted sums of all features.

    Args:
        heads: [FEATURES] weights.
        counted: [COUNTER_FEATURES, contexts, candidates] counter features.
        affinities: products [4, contexts, candidates], attention [contexts, candidates], affinity to the global
            preference [candidates], text share [candidates], and affinity to the search query [contexts, candidates];
            the last one is [0, candidates] without queries.
        out: [contexts, candidates] array to fill.
    """
    products, attention, preference, text_share, query = affinities
    for context in range(len(attention)):
        row = out[context]
        row[:] = 0
        for feature in range(len(counted)):
            add_scaled(heads[feature], counted[feature, context], row)
        for part in range(len(products)):
            weight, square = heads[_PRODUCTS + part], AFFINITY_SCALE * heads[_SQUARES + part]
            new = AFFINITY_SCALE * heads[_NEW + part] if part < _ATTENTION - _NEW else np.float32(0)
            _add_product(weight, square, new, products[part, context], text_share, row)
        attended = AFFINITY_SCALE * heads[_ATTENTION]
        for candidate in range(len(row)):
            row[candidate] += attended * text_share[candidate] * attention[context, candidate]
            row[candidate] += heads[_PREFERENCE] * preference[candidate]
        if len(query):
            square = AFFINITY_SCALE * heads[_QUERY + 1]
            _add_product(heads[_QUERY], square, np.float32(0), query[context], text_share, row)


@compiled
def _add_product(weight: Any, square: Any, new: Any, product: Any, text_share: Any, total: Any) -> None:
    """Add a product [candidates], its square and its product with the text share, each weighted, to `total`."""
    for candidate in range(len(total)):
        slope = weight + square * product[candidate] + new * text_share[candidate]
        total[candidate] += slope * product[candidate]


@compiled
def heads_gradient(gradient: Any, counted: Any, affinities: Any, out: Any) -> None:
    """Add the gradient of the weights to `out` [FEATURES], zeros.

    Args:
        gradient: [contexts, candidates] gradient of the scores.
        counted: counter features, as in `scores`.
        affinities: affinities, as in `scores`.
        out: [FEATURES] zeros to add to.
    """
    products, attention, preference, text_share, query = affinities
    for context in range(len(gradient)):
        row = gradient[context]
        for feature in range(len(counted)):
            out[feature] += dot(row, counted[feature, context])
        for part in range(len(products)):
            product = products[part, context]
            out[_PRODUCTS + part] += dot(row, product)
            out[_SQUARES + part] += AFFINITY_SCALE * _dot_3(row, product, product)
            if part < _ATTENTION - _NEW:
                out[_NEW + part] += AFFINITY_SCALE * _dot_3(row, product, text_share)
        out[_ATTENTION] += AFFINITY_SCALE * _dot_3(row, attention[context], text_share)
        out[_PREFERENCE] += dot(row, preference)
        if len(query):
            out[_QUERY] += dot(row, query[context])
            out[_QUERY + 1] += AFFINITY_SCALE * _dot_3(row, query[context], query[context])


@compiled
def _dot_3(first: Any, second: Any, third: Any) -> Any:
    """Return the sum of the products of three vectors [candidates]."""
    total = np.float32(0)
    for number in range(len(first)):
        total += first[number] * second[number] * third[number]
    return total


@compiled
def similarity_gradient(
    heads: Any, gradient: Any, parts: Any, similarity: Any, strength: Any, affinities: Any, totals: Any, out: Any
) -> None:
    """Add the gradient of the similarities to `out`.

    Args:
        heads: [FEATURES] weights.
        gradient: [contexts, candidates] gradient of the scores.
        parts: parts of the contexts, as in `mix`.
        similarity: similarities, as in `mix`.
        strength: attention strengths, as in `mix`.
        affinities: affinities, as in `scores`.
        totals: total weights of the attention, as in `mix`.
        out: [rows, candidates] zeros to add to.
    """
    session, last, history, passed = parts
    products, attention, _, text_share, _ = affinities
    count = gradient.shape[1]
    of_products = np.empty((len(products), count), np.float32)
    of_sum, of_total = np.empty(count, np.float32), np.empty(count, np.float32)  # the attention's quotient
    attended = AFFINITY_SCALE * heads[_ATTENTION]
    for context in range(len(gradient)):
        for part in range(len(products)):
            weight, square = heads[_PRODUCTS + part], 2 * AFFINITY_SCALE * heads[_SQUARES + part]
            new = AFFINITY_SCALE * heads[_NEW + part] if part < _ATTENTION - _NEW else np.float32(0)
            product, of_product = products[part, context], of_products[part]
            for candidate in range(count):
                slope = weight + square * product[candidate] + new * text_share[candidate]
                of_product[candidate] = slope * gradient[context, candidate]
        for candidate in range(count):
            of_attention = attended * text_share[candidate] * gradient[context, candidate]
            of_sum[candidate] = of_attention / totals[context, candidate]
            of_total[candidate] = -of_sum[candidate] * attention[context, candidate]
        for row in range(session.shape[1]):
            weight = session[context, row]
            if weight != 0:
                _attend_back(weight, similarity[row], strength[row], of_products[0], of_sum, of_total, out[row])
            if last[context, row] != 0:
                add_scaled(last[context, row], of_products[2], out[row])
        if history[context] >= 0:
            add_scaled(np.float32(1), of_products[1], out[history[context]])
        if passed[context] >= 0:
            add_scaled(np.float32(1), of_products[3], out[passed[context]])


@compiled
def _attend_back(
    weight: Any, similarity: Any, strength: Any, of_product: Any, of_sum: Any, of_total: Any, out: Any
) -> None:
    """Add the gradient of an item's similarities to `out` [candidates].

    Args:
        weight: weight of the item in its session.
        similarity: [candidates] similarity of the item and each candidate.
        strength: [candidates] attention of each candidate to the item.
        of_product: [candidates] gradient of the session's product.
        of_sum: [candidates] gradient of the attention's weighted sum.
        of_total: [candidates] gradient of the attention's total weight.
        out: [candidates] sums to add to.
    """
    for candidate in range(len(out)):
        of_strength = ATTENTION_SHARPNESS * (of_sum[candidate] * similarity[candidate] + of_total[candidate])
        out[candidate] += weight * (of_product[candidate] + strength[candidate] * (of_sum[candidate] + of_strength))
