"""Loops that are compiled (numba): what scores take of counters and vectors, without arrays in between.

In arrays of numpy and scipy a ranking of a hundred candidates spends most of its time on being called. A loop here does
a whole step, for one context or for a batch of them: the same input gives the same bits, however many come together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

PROBABILITY_SCALE = np.float32(100.0)  # below 1 %, where a single count lies, the logarithm is nearly linear
LIFT_SCALE = np.float32(10.0)
AFFINITY_SCALE = np.float32(3.0)  # a head's steps are of one size for all features, and these are small
ATTENTION_SHARPNESS = np.float32(12.0)  # a similarity lower by 1 / 12 counts 1 / e
NO_ATTENTION = 1e-12  # below what the least similar item gets; of an empty session the sum is 0
SHORTEST = 1e-12  # of a vector that is made one of length 1, as torch has it
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiled when it is called first, and kept on disk where there is a place for it.

    Sums may be put in another order than written, the same each time: vectors are multiplied eight numbers at a time.
    """
    how: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        kept: Function = numba.njit(cache=True, **how)(function)
    except RuntimeError:  # nowhere to write to: compiled anew in each process
        kept = numba.njit(**how)(function)
    return kept


@compiled
def product(one: Any, other: Any) -> Any:
    """Dot product of two vectors."""
    total = np.float32(0)
    for number in range(len(one)):
        total += one[number] * other[number]
    return total


@compiled
def unit(text: Any, gate: Any, residuals: Any, found: Any) -> None:
    """Vectors of items, of length 1: `text + gate * residual` over its length.

    Args:
        text: [items, dim].
        gate: [items].
        residuals: [items, dim].
        found: [items, dim], where they go.
    """
    for item in range(len(text)):
        vector, squares = found[item], np.float32(0)
        for number in range(len(vector)):
            vector[number] = text[item, number] + gate[item] * residuals[item, number]
            squares += vector[number] * vector[number]
        scale = np.float32(1) / max(np.sqrt(squares), np.float32(SHORTEST))
        for number in range(len(vector)):
            vector[number] *= scale


@compiled
def highest(items: Any, passed: Any, columns: Any) -> int:
    """The highest row of items [contexts, items] and [contexts, passed], and of candidates; -1 where there is none."""
    found = -1
    for context in range(len(items)):
        for row in items[context]:
            found = max(found, row)
        for row in passed[context]:
            found = max(found, row)
    for row in columns:
        found = max(found, row)
    return found


@compiled
def add(weight: Any, vector: Any, total: Any) -> None:
    """Add `weight * vector` to a vector."""
    for number in range(len(vector)):
        total[number] += weight * vector[number]


@compiled
def look_at(items: Any, ages: Any, passed: Any, recency: Any, query: Any, attends: bool) -> Any:
    """What one context looks at: mean vectors of its parts, then vectors of the session's items, and their weights.

    Args:
        items: [items] rows of `query`, newest first.
        ages: [items] 0 in the session at hand, 1 in the one before it, and so on; -1 where there is no item.
        passed: [passed] rows of `query` of what was passed over, newest first; -1 where there is none.
        recency: weights [items that count, rank] of a session's items, of those of earlier sessions, of those passed.
        query: [.., dim].
        attends: whether the session's items are to be there themselves.

    Returns:
        vectors [4 + items, dim]: of the session, of earlier sessions, of the last item, of what was passed over, then
        of the session's items, newest first, and as many zeros as make their number one of fours; weights [items].
    """
    session_weights, history_weights, passed_weights = recency
    in_session, before, over = 0, 0, 0
    for age in ages:
        in_session += age == 0
        before += age > 0
    for row in passed:
        over += row >= 0
    session = session_weights[min(in_session, len(session_weights) - 1)]
    history = history_weights[min(before, len(history_weights) - 1)]
    skipped = passed_weights[min(over, len(passed_weights) - 1)]
    weights = session[: min(in_session, len(session)) if attends else 0]
    vectors = np.zeros((4 + (len(weights) + 3) // 4 * 4, query.shape[1]), np.float32)
    seen, of_session, of_history, of_passed = 0, 0, 0, 0
    for index in range(len(items)):
        if ages[index] < 0:
            continue
        vector = query[items[index]]
        if seen == 0:
            vectors[2] = vector
        seen += 1
        if ages[index] == 0:
            if of_session < len(weights):
                vectors[4 + of_session] = vector
            if of_session < len(session):
                add(session[of_session], vector, vectors[0])
            of_session += 1
        else:
            if of_history < len(history):
                add(history[of_history], vector, vectors[1])
            of_history += 1
    for row in passed:
        if row >= 0:
            if of_passed < len(skipped):
                add(skipped[of_passed], query[row], vectors[3])
            of_passed += 1
    return vectors, weights


@compiled
def products(vectors: Any, one: Any, other: Any, found: Any) -> None:
    """Dot products of two candidates with vectors, four of them at a time: what is loaded once is used often.

    Args:
        vectors: [vectors, dim], a multiple of four.
        one: [dim].
        other: [dim].
        found: [2, vectors], where they go.
    """
    for start in range(0, len(vectors), 4):
        first, second, third, fourth = vectors[start], vectors[start + 1], vectors[start + 2], vectors[start + 3]
        zero = np.float32(0)
        one_1, one_2, one_3, one_4, other_1, other_2, other_3, other_4 = zero, zero, zero, zero, zero, zero, zero, zero
        for number in range(len(one)):
            own, others = one[number], other[number]
            one_1 += own * first[number]
            one_2 += own * second[number]
            one_3 += own * third[number]
            one_4 += own * fourth[number]
            other_1 += others * first[number]
            other_2 += others * second[number]
            other_3 += others * third[number]
            other_4 += others * fourth[number]
        found[0, start], found[0, start + 1], found[0, start + 2], found[0, start + 3] = one_1, one_2, one_3, one_4
        found[1, start], found[1, start + 1], found[1, start + 2], found[1, start + 3] = (
            other_1,
            other_2,
            other_3,
            other_4,
        )


@compiled
def attention(likeness: Any, weights: Any) -> Any:
    """What the items of a session say of a candidate that is so much like each, each as strongly as it is like it."""
    said, looked_at = np.float32(0), np.float32(NO_ATTENTION)
    for item in range(len(weights)):
        strength = weights[item] * np.exp(ATTENTION_SHARPNESS * (likeness[item] - np.float32(1)))
        said += strength * likeness[item]
        looked_at += strength
    return said / looked_at


@compiled
def compared(
    context: Any,
    recency: Any,
    query: Any,
    query_vector: Any,
    attends: bool,
    columns: Any,
    candidates: Any,
    standing: Any,
    found: Any,
) -> None:
    """Affinity features of one context, in the order of `features.affinities`, and what outcomes also follow from.

    Args:
        context: items, ages and what was passed over, as `look_at` takes them.
        recency: as above.
        query: as above.
        query_vector: [0 or 1, dim] vector of what is searched for.
        attends: whether attention is worked out, which takes most of the time; else it is zero.
        columns: [candidates] rows.
        candidates: [.., dim] vectors.
        standing: [3, all items] how each is liked, how far text speaks for it, and how its clicks convert.
        found: zeros [AFFINITY_FEATURES + 3, candidates], where they go, with the conversion, 1, and 0 for the place.
    """
    items, ages, passed = context
    vectors, weights = look_at(items, ages, passed, recency, query, attends)
    likeness = np.empty((2, len(vectors)), np.float32)
    for start in range(0, len(columns), 2):
        pair = columns[start : start + 2]
        products(vectors, candidates[pair[0]], candidates[pair[-1]], likeness)
        for which in range(len(pair)):
            row, column, own = pair[which], start + which, likeness[which]
            new = AFFINITY_SCALE * standing[1, row]
            for part in range(4):
                found[part, column] = own[part]
                found[4 + part, column] = AFFINITY_SCALE * own[part] * own[part]
                if part < 3:
                    found[8 + part, column] = new * own[part]
            found[11, column] = new * attention(own[4:], weights)
            found[12, column] = standing[0, row]
            found[15, column] = standing[2, row]
            found[16, column] = np.float32(1)
            for vector in query_vector:
                likes = product(vector, candidates[row])
                found[13, column] = likes
                found[14, column] = AFFINITY_SCALE * likes * likes


@compiled
def weighted(weights: Any, inputs: Any, found: Any) -> None:
    """Sums of inputs, one by one.

    Args:
        weights: [sums, inputs].
        inputs: [inputs, candidates].
        found: [sums, candidates], where they go.
    """
    found[:] = 0
    for which in range(len(weights)):
        for number in range(len(inputs)):
            add(weights[which, number], inputs[number], found[which])


@compiled
def follow(counts: Any, row: int, weight: float, place: Any, found: Any) -> None:
    """Add up what was counted to follow one item: `weight * counts[row] / (row's sum + smoothing)`.

    Args:
        counts: the row sums with their smoothing, and bounds, columns and counts of two parts, as CSR has them.
        row: of the item.
        weight: of the item.
        place: [items] where each is among the candidates, -1 where it is none.
        found: [candidates], where it is added.
    """
    sums, main, recent = counts
    share = np.float32(weight) / sums[row]
    for bounds, columns, values in (main, recent):
        for entry in range(bounds[row], bounds[row + 1]):
            candidate = place[columns[entry]]
            if candidate >= 0:
                found[candidate] += share * values[entry]


@compiled
def look_back(items: Any, ages: Any, counts: Any, recency: Any, place: Any, found: Any) -> None:
    """Add up what the items of one context say of candidates by what was counted, and that they are among them.

    Args:
        items: [items] of the context, newest first, -1 where there is none.
        ages: [items] 0 in the session at hand, 1 in the one before it, and so on; -1 where there is none.
        counts: of transitions, skip transitions, co-occurrence and neighbours, as `follow` takes them.
        recency: weights [items that count, rank] of a session's items, of the nearest of them, of those of earlier
            sessions.
        place: [items] as above.
        found: [9, candidates] zeros. Probabilities to follow the last item, near ones, to go with the session, with the
            history, to stand beside near ones; how often a candidate is in the history, 0, whether it is in the last
            basket, and in the session.
    """
    transitions, skips, together, beside = counts
    session_weights, near_weights, history_weights = recency
    in_session, before = 0, 0
    for age in ages:
        in_session += age == 0
        before += age > 0
    session = session_weights[min(in_session, len(session_weights) - 1)]
    near = near_weights[min(in_session, len(near_weights) - 1)]
    history = history_weights[min(before, len(history_weights) - 1)]
    seen, of_session, of_history = 0, 0, 0
    for index in range(len(items)):
        row, age = items[index], ages[index]
        if age < 0:
            continue
        candidate = place[row]
        if seen == 0:
            follow(transitions, row, 1.0, place, found[0])
        seen += 1
        if age == 0:
            if of_session < len(near):
                follow(skips, row, near[of_session], place, found[1])
                follow(beside, row, near[of_session], place, found[4])
            if of_session < len(session):
                follow(together, row, session[of_session], place, found[2])
            of_session += 1
            if candidate >= 0:
                found[8, candidate] = 1.0
            continue
        if of_history < len(history):
            follow(together, row, history[of_history], place, found[3])
        of_history += 1
        if candidate >= 0:
            found[5, candidate] += 1.0
            if age == 1:
                found[7, candidate] = 1.0


@compiled
def counted(items: Any, ages: Any, counts: Any, recency: Any, standing: Any, columns: Any, found: Any) -> None:
    """Counter features of a batch of contexts.

    Args:
        items: [contexts, items] as above.
        ages: [contexts, items] as above.
        counts: as above.
        recency: as above.
        standing: [5, all items] what does not depend on who asks: log popularity, fast and slow, click-through,
            never sold, and the root of popularity's share.
        columns: [candidates] rows.
        found: [COUNTER_FEATURES, contexts, candidates], where they go.
    """
    place = np.full(standing.shape[1], -1, np.int32)
    for column in range(len(columns)):
        place[columns[column]] = column
    own = np.empty((9, len(columns)), np.float32)
    for context in range(len(items)):
        own[:] = 0
        look_back(items[context], ages[context], counts, recency, place, own)
        of_context = found[:, context]
        for column in range(len(columns)):
            row = columns[column]
            own[6, column] = LIFT_SCALE * own[2, column] / standing[4, row]
            for feature in range(7):
                value = own[feature, column]
                if feature < 5:
                    value *= PROBABILITY_SCALE
                of_context[2 + feature, column] = np.log1p(value) if value > 0 else value
            of_context[9, column] = own[7, column]
            of_context[10, column] = own[8, column]
            of_context[0, column] = standing[0, row]
            of_context[1, column] = standing[1, row]
            of_context[11, column] = standing[2, row]
            of_context[12, column] = standing[3, row]
