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
def mean_vectors(items: Any, ages: Any, passed: Any, recency: Any, query: Any, means: Any) -> Any:
    """What one context looks at: mean vectors of its parts, and vectors and weights of the session's items.

    Args:
        items: [items] rows of `query`, newest first.
        ages: [items] 0 in the session at hand, 1 in the one before it, and so on; -1 where there is no item.
        passed: [passed] rows of `query` of what was passed over, newest first; -1 where there is none.
        recency: weights [items that count, rank] of a session's items, of those of earlier sessions, of those passed.
        query: [.., dim].
        means: [4, dim] zeros: of the session, of earlier sessions, of the last item, of what was passed over.
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
    vectors = np.empty((min(in_session, len(session)), query.shape[1]), np.float32)
    seen, of_session, of_history, of_passed = 0, 0, 0, 0
    for index in range(len(items)):
        if ages[index] < 0:
            continue
        vector = query[items[index]]
        if seen == 0:
            means[2] = vector
        seen += 1
        if ages[index] == 0:
            if of_session < len(session):
                vectors[of_session] = vector
                means[0] += session[of_session] * vector
            of_session += 1
        else:
            if of_history < len(history):
                means[1] += history[of_history] * vector
            of_history += 1
    for row in passed:
        if row >= 0:
            if of_passed < len(skipped):
                means[3] += skipped[of_passed] * query[row]
            of_passed += 1
    return vectors, session[: len(vectors)]


@compiled
def attention(candidate: Any, vectors: Any, weights: Any) -> Any:
    """What the items of a session say of a candidate, each as strongly as it is like it."""
    said, looked_at = np.float32(0), np.float32(NO_ATTENTION)
    for item in range(len(vectors)):
        similarity = product(vectors[item], candidate)
        strength = weights[item] * np.exp(ATTENTION_SHARPNESS * (similarity - np.float32(1)))
        said += strength * similarity
        looked_at += strength
    return said / looked_at


@compiled
def compared(
    context: Any,
    recency: Any,
    query: Any,
    asked: Any,
    attends: bool,
    columns: Any,
    candidates: Any,
    standing: Any,
    found: Any,
) -> None:
    """Affinity features of one context, in the order of `features.affinities`.

    Args:
        context: items, ages and what was passed over, as `mean_vectors` takes them.
        recency: as above.
        query: as above.
        asked: [0 or 1, dim] vector of what is searched for.
        attends: whether attention is worked out, which takes most of the time; else it is zero.
        columns: [candidates] rows.
        candidates: [.., dim] vectors.
        standing: [2, all items] how each is liked, and how far text speaks for it.
        found: [AFFINITY_FEATURES, candidates], where they go; zero where nothing is searched for.
    """
    items, ages, passed = context
    means = np.zeros((4, query.shape[1]), np.float32)
    vectors, weights = mean_vectors(items, ages, passed, recency, query, means)
    for column in range(len(columns)):
        row = columns[column]
        candidate, new = candidates[row], AFFINITY_SCALE * standing[1, row]
        for part in range(4):
            own = product(means[part], candidate)
            found[part, column] = own
            found[4 + part, column] = AFFINITY_SCALE * own * own
            if part < 3:
                found[8 + part, column] = new * own
        found[11, column] = new * attention(candidate, vectors, weights) if attends else np.float32(0)
        found[12, column] = standing[0, row]
        for vector in asked:
            own = product(vector, candidate)
            found[13, column] = own
            found[14, column] = AFFINITY_SCALE * own * own


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
