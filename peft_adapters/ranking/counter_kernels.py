"""Compiled loops that compute counter features of candidates from sparse counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

PROBABILITY_SCALE = np.float32(100.0)  # below 1 %, the range of a single count, the logarithm is nearly linear
LIFT_SCALE = np.float32(10.0)
SMOOTHING_EVENTS = 5.0  # added to the count that a probability is divided by


@compiled
def max_row(items: Any, passed: Any, columns: Any) -> int:
    """Return the largest catalogue row of contexts and candidates; -1 without any.

    Args:
        items: [contexts, items] rows of the contexts' items, -1 for padding.
        passed: [contexts, passed] rows of passed-over items, -1 for padding.
        columns: [candidates] rows of the candidates.
    """
    largest = -1
    for context in range(len(items)):
        for row in items[context]:
            largest = max(largest, row)
        for row in passed[context]:
            largest = max(largest, row)
    for row in columns:
        largest = max(largest, row)
    return largest


@compiled
def add_probabilities(counts: Any, row: int, weight: float, position: Any, out: Any) -> None:
    """Add an item's weighted conditional probabilities, `weight * counts[row] / (row sum + smoothing)`, to `out`.

    Args:
        counts: row sums with smoothing [items], then CSR arrays (bounds, columns, counts) of the main and recent parts.
        row: catalogue row of the item.
        weight: weight of the item in its context.
        position: [items] position of each item among the candidates, -1 if it is not a candidate.
        out: [candidates] sums to add to.
    """
    sums, main, recent = counts
    share = np.float32(weight) / sums[row]
    for bounds, columns, values in (main, recent):
        for entry in range(bounds[row], bounds[row + 1]):
            candidate = position[columns[entry]]
            if candidate >= 0:
                out[candidate] += share * values[entry]


@compiled
def add_context_counts(items: Any, ages: Any, counts: Any, recency: Any, position: Any, out: Any) -> None:
    """Add the conditional probabilities of the candidates, and their occurrences, for one context.

    Args:
        items: [items] rows of the context's items, newest first, -1 for padding.
        ages: [items] age of each item in sessions, 0 for the current session, -1 for padding.
        counts: matrices of transitions, skip transitions, co-occurrence and neighbours, as in `add_probabilities`.
        recency: weights [item count, rank] of the session's items, of its nearest items and of earlier sessions' items.
        position: [items] position of each item among the candidates, -1 if it is not a candidate.
        out: [9, candidates] zeros to add to: probability to follow the last item, to follow the nearest items, to
            co-occur with the session, to co-occur with the history and to be a neighbour of the nearest items; number
            of occurrences in the history; unused; 1 if in the last basket; 1 if in the session.
    """
    transitions, skip_transitions, cooccurrences, neighbours = counts
    session_weights, near_weights, history_weights = recency
    in_session, in_history = 0, 0
    for age in ages:
        in_session += age == 0
        in_history += age > 0
    session = session_weights[min(in_session, len(session_weights) - 1)]
    near = near_weights[min(in_session, len(near_weights) - 1)]
    history = history_weights[min(in_history, len(history_weights) - 1)]
    rank, session_rank, history_rank = 0, 0, 0
    for index in range(len(items)):
        row, age = items[index], ages[index]
        if age < 0:
            continue
        candidate = position[row]
        if rank == 0:
            add_probabilities(transitions, row, 1.0, position, out[0])
        rank += 1
        if age == 0:
            if session_rank < len(near):
                add_probabilities(skip_transitions, row, near[session_rank], position, out[1])
                add_probabilities(neighbours, row, near[session_rank], position, out[4])
            if session_rank < len(session):
                add_probabilities(cooccurrences, row, session[session_rank], position, out[2])
            session_rank += 1
            if candidate >= 0:
                out[8, candidate] = 1.0
            continue
        if history_rank < len(history):
            add_probabilities(cooccurrences, row, history[history_rank], position, out[3])
        history_rank += 1
        if candidate >= 0:
            out[5, candidate] += 1.0
            if age == 1:
                out[7, candidate] = 1.0


@compiled
def counter_features(
    items: Any, ages: Any, passed: Any, counts: Any, recency: Any, static_features: Any, columns: Any, out: Any
) -> Any:
    """Write the counter features of a batch of contexts to `out`; return the largest catalogue row of all arguments.

    Nothing is written if that row is beyond the counted items: compiled loops do not check bounds.

    Args:
        items: [contexts, items] rows of the contexts' items, as in `add_context_counts`.
        ages: [contexts, items] ages in sessions, as in `add_context_counts`.
        passed: [contexts, passed] rows of passed-over items, -1 for padding.
        counts: count matrices, as in `add_context_counts`.
        recency: recency weights, as in `add_context_counts`.
        static_features: [5, all items] values independent of the context: log popularity (fast, slow), click-through,
            never sold, and the square root of the popularity share.
        columns: [candidates] rows of the candidates.
        out: [COUNTER_FEATURES, contexts, candidates] array to fill.
    """
    largest = max_row(items, passed, columns)
    if largest >= static_features.shape[1]:
        return largest
    position = np.full(static_features.shape[1], -1, np.int32)
    for column in range(len(columns)):
        position[columns[column]] = column
    static = np.empty((5, len(columns)), np.float32)
    for feature in range(5):
        for column in range(len(columns)):
            static[feature, column] = static_features[feature, columns[column]]
    sums = np.empty((9, len(columns)), np.float32)
    for context in range(len(items)):
        sums[:] = 0
        add_context_counts(items[context], ages[context], counts, recency, position, sums)
        for column in range(len(columns)):
            sums[6, column] = LIFT_SCALE * sums[2, column] / static[4, column]
        for feature in range(7):
            scale = PROBABILITY_SCALE if feature < 5 else np.float32(1)
            log_scaled(scale, sums[feature], out[2 + feature, context])
        for feature in range(2):
            out[feature, context] = static[feature]
            out[9 + feature, context] = sums[7 + feature]
            out[11 + feature, context] = static[2 + feature]
    return largest


@compiled
def log_scaled(scale: Any, values: Any, out: Any) -> None:
    """Write `log(1 + scale * value)` of values [candidates], most of which are zero, to `out` [candidates]."""
    for column in range(len(values)):
        value = scale * values[column]
        out[column] = np.log1p(value) if value > 0 else value
