"""Compiled loops that compute item vectors, affinity features of candidates, and weighted sums of features."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

AFFINITY_SCALE = np.float32(3.0)  # a head's steps are equally large for all features, and these features are small
ATTENTION_SHARPNESS = np.float32(12.0)  # a cosine lower by 1 / 12 reduces an item's weight to 1 / e
NO_ATTENTION = 1e-12  # below the weight of the least similar item; keeps an empty session's mean at 0
MIN_NORM = 1e-12  # divisor of shorter vectors at normalisation, as in torch


@compiled
def dot(left: Any, right: Any) -> Any:
    """Return the dot product of two vectors [dim]."""
    total = np.float32(0)
    for number in range(len(left)):
        total += left[number] * right[number]
    return total


@compiled
def item_vectors(text: Any, gate: Any, residuals: Any, out: Any) -> None:
    """Write the unit vectors of items, `text + gate * residual` over its norm, to `out`.

    Args:
        text: [items, dim] text vectors.
        gate: [items] weight of each item's residual.
        residuals: [items, dim] learnt residuals.
        out: [items, dim] array to fill.
    """
    for item in range(len(text)):
        vector, squares = out[item], np.float32(0)
        for number in range(len(vector)):
            vector[number] = text[item, number] + gate[item] * residuals[item, number]
            squares += vector[number] * vector[number]
        scale = np.float32(1) / max(np.sqrt(squares), np.float32(MIN_NORM))
        for number in range(len(vector)):
            vector[number] *= scale


@compiled
def item_vectors_gradient(text: Any, gate: Any, residuals: Any, gradient: Any, of_text: Any, of_residuals: Any) -> None:
    """Write the gradients of the inputs of `item_vectors`.

    With `v = text + gate * residual` and `z = v / |v|`, the gradient of `v` is `(g - z (z . g)) / |v|`.

    Args:
        text: [items, dim] text vectors.
        gate: [items] weight of each item's residual.
        residuals: [items, dim] learnt residuals.
        gradient: [items, dim] gradient of the unit vectors.
        of_text: [items, dim] array to fill with the gradient of the text vectors.
        of_residuals: [items, dim] array to fill with the gradient of the residuals.
    """
    for item in range(len(text)):
        vector, squares, product = of_residuals[item], np.float32(0), np.float32(0)
        for number in range(len(vector)):
            vector[number] = text[item, number] + gate[item] * residuals[item, number]
            squares += vector[number] * vector[number]
            product += vector[number] * gradient[item, number]
        scale = np.float32(1) / max(np.sqrt(squares), np.float32(MIN_NORM))
        along = product * scale * scale  # 0 for a zero vector
        for number in range(len(vector)):
            of_text[item, number] = scale * (gradient[item, number] - along * vector[number])
            vector[number] = gate[item] * of_text[item, number]


@compiled
def add_scaled(weight: Any, vector: Any, total: Any) -> None:
    """Add `weight * vector` to `total`, both [dim]."""
    for number in range(len(vector)):
        total[number] += weight * vector[number]


@compiled
def mean_vectors(items: Any, ages: Any, passed: Any, recency: Any, context_vectors: Any, with_attention: bool) -> Any:
    """Return the mean vectors of one context's parts, the vectors of its session's items, and the items' weights.

    Args:
        items: [items] rows of `context_vectors`, newest first.
        ages: [items] age of each item in sessions, 0 for the current session, -1 for padding.
        passed: [passed] rows of `context_vectors` of passed-over items, newest first, -1 for padding.
        recency: weights [item count, rank] of the session's items, of earlier sessions' items and of passed-over items.
        context_vectors: [.., dim] item vectors in the query role.
        with_attention: return the session's items too, not only the means.

    Returns:
        vectors [4 + items, dim]: means of the session, of earlier sessions, of the last item and of passed-over items,
        then the session's items, newest first, padded with zeros to a multiple of four; weights [items].
    """
    session_weights, history_weights, passed_weights = recency
    in_session, in_history, in_passed = 0, 0, 0
    for age in ages:
        in_session += age == 0
        in_history += age > 0
    for row in passed:
        in_passed += row >= 0
    session = session_weights[min(in_session, len(session_weights) - 1)]
    history = history_weights[min(in_history, len(history_weights) - 1)]
    skipped = passed_weights[min(in_passed, len(passed_weights) - 1)]
    weights = session[: min(in_session, len(session)) if with_attention else 0]
    vectors = np.zeros((4 + (len(weights) + 3) // 4 * 4, context_vectors.shape[1]), np.float32)
    rank, session_rank, history_rank, passed_rank = 0, 0, 0, 0
    for index in range(len(items)):
        if ages[index] < 0:
            continue
        vector = context_vectors[items[index]]
        if rank == 0:
            vectors[2] = vector
        rank += 1
        if ages[index] == 0:
            if session_rank < len(weights):
                vectors[4 + session_rank] = vector
            if session_rank < len(session):
                add_scaled(session[session_rank], vector, vectors[0])
            session_rank += 1
        else:
            if history_rank < len(history):
                add_scaled(history[history_rank], vector, vectors[1])
            history_rank += 1
    for row in passed:
        if row >= 0:
            if passed_rank < len(skipped):
                add_scaled(skipped[passed_rank], context_vectors[row], vectors[3])
            passed_rank += 1
    return vectors, weights


@compiled
def dot_pair(vectors: Any, left: Any, right: Any, out: Any) -> None:
    """Write the dot products of two candidates with vectors to `out`; four vectors per step reuse loaded values.

    Args:
        vectors: [vectors, dim] a multiple of four vectors.
        left: [dim] vector of the first candidate.
        right: [dim] vector of the second candidate.
        out: [2, vectors] array to fill.
    """
    for start in range(0, len(vectors), 4):
        first, second, third, fourth = vectors[start], vectors[start + 1], vectors[start + 2], vectors[start + 3]
        zero = np.float32(0)
        left_1, left_2, left_3, left_4 = zero, zero, zero, zero
        right_1, right_2, right_3, right_4 = zero, zero, zero, zero
        for number in range(len(left)):
            left_value, right_value = left[number], right[number]
            left_1 += left_value * first[number]
            left_2 += left_value * second[number]
            left_3 += left_value * third[number]
            left_4 += left_value * fourth[number]
            right_1 += right_value * first[number]
            right_2 += right_value * second[number]
            right_3 += right_value * third[number]
            right_4 += right_value * fourth[number]
        out[0, start], out[0, start + 1], out[0, start + 2], out[0, start + 3] = left_1, left_2, left_3, left_4
        out[1, start], out[1, start + 1], out[1, start + 2], out[1, start + 3] = right_1, right_2, right_3, right_4


@compiled
def attention(similarity: Any, weights: Any) -> Any:
    """Return the attention-weighted mean similarity of a candidate to the session's items.

    Args:
        similarity: [items] cosine of the candidate and each item.
        weights: [items] recency weight of each item.
    """
    weighted_similarity, total = np.float32(0), np.float32(NO_ATTENTION)
    for item in range(len(weights)):
        strength = weights[item] * np.exp(ATTENTION_SHARPNESS * (similarity[item] - np.float32(1)))
        weighted_similarity += strength * similarity[item]
        total += strength
    return weighted_similarity / total


@compiled
def affinity_features(
    context: Any,
    recency: Any,
    context_vectors: Any,
    query_vector: Any,
    with_attention: bool,
    columns: Any,
    candidate_vectors: Any,
    static_features: Any,
    out: Any,
) -> None:
    """Write one context's affinity features, in the order of `features.affinities`, and three outcome inputs to `out`.

    Args:
        context: items, ages and passed-over items, as in `mean_vectors`.
        recency: recency weights, as in `mean_vectors`.
        context_vectors: [.., dim] item vectors in the query role.
        query_vector: [0 or 1, dim] vector of the search query.
        with_attention: compute attention, which takes most of the time; else it is zero.
        columns: [candidates] rows of the candidates.
        candidate_vectors: [.., dim] item vectors in the candidate role.
        static_features: [3, all items] values independent of the context: affinity to the global preference, text
            share and conversion.
        out: [AFFINITY_FEATURES + 3, candidates] zeros to fill; the last three rows are conversion, 1 and 0 (position).
    """
    items, ages, passed = context
    vectors, weights = mean_vectors(items, ages, passed, recency, context_vectors, with_attention)
    similarities = np.empty((2, len(vectors)), np.float32)
    for start in range(0, len(columns), 2):
        pair = columns[start : start + 2]
        dot_pair(vectors, candidate_vectors[pair[0]], candidate_vectors[pair[-1]], similarities)
        for member in range(len(pair)):
            row, column, similarity = pair[member], start + member, similarities[member]
            text_weight = AFFINITY_SCALE * static_features[1, row]
            for part in range(4):
                out[part, column] = similarity[part]
                out[4 + part, column] = AFFINITY_SCALE * similarity[part] * similarity[part]
                if part < 3:
                    out[8 + part, column] = text_weight * similarity[part]
            out[11, column] = text_weight * attention(similarity[4:], weights)
            out[12, column] = static_features[0, row]
            out[15, column] = static_features[2, row]
            out[16, column] = np.float32(1)
            for vector in query_vector:
                query_affinity = dot(vector, candidate_vectors[row])
                out[13, column] = query_affinity
                out[14, column] = AFFINITY_SCALE * query_affinity * query_affinity


@compiled
def weighted_sums(weights: Any, inputs: Any, out: Any) -> None:
    """Write weighted sums of inputs to `out`.

    Args:
        weights: [sums, inputs] weight of each input in each sum.
        inputs: [inputs, candidates] values to sum.
        out: [sums, candidates] array to fill.
    """
    out[:] = 0
    for index in range(len(weights)):
        for number in range(len(inputs)):
            add_scaled(weights[index, number], inputs[number], out[index])
