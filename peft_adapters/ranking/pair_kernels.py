"""Compiled loops over pairs of a context's items and candidates: how often they occur together, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

SMOOTHING = np.float32(5)  # events added to those of an item that counts are divided by
LAST_SMOOTHING = np.float32(2)  # the same for transitions of the last items
ORDER_SMOOTHING = np.float32(2)  # pairs added to those of both orders
ORDERED_ITEMS = 10  # newest items of the session whose order is compared
MEAN_DECAY, TRANSITION_DECAY = np.float32(0.9), np.float32(0.8)  # weight of an item over that of the next newer one
PROBABILITY_SCALE, COSINE_SCALE = np.float32(100), np.float32(50)


@compiled
def add_counts(matrix: Any, row: int, position: Any, out: Any) -> None:
    """Add an item's counts with the candidates to `out`; those with itself are left out.

    Args:
        matrix: CSR arrays (bounds, columns, counts) of the main and recent parts.
        row: catalogue row of the item.
        position: [items] position of each item among the candidates, -1 if it is not a candidate.
        out: [candidates] sums to add to.
    """
    main, recent = matrix
    for bounds, columns, counts in (main, recent):
        for entry in range(bounds[row], bounds[row + 1]):
            candidate = position[columns[entry]]
            if candidate >= 0 and columns[entry] != row:
                out[candidate] += counts[entry]


@compiled
def count_of(matrix: Any, row: int, column: int) -> Any:
    """Return the count of one pair, 0 of an item with itself; by binary search, since columns are sorted in a row.

    Args:
        matrix: CSR arrays as in `add_counts`.
        row: catalogue row of the first item.
        column: catalogue row of the second item.
    """
    total = np.float32(0)
    if row == column:
        return total
    main, recent = matrix
    for bounds, columns, counts in (main, recent):
        low, high = bounds[row], bounds[row + 1]
        while low < high:
            middle = (low + high) // 2
            if columns[middle] < column:
                low = middle + 1
            else:
                high = middle
        if low < bounds[row + 1] and columns[low] == column:
            total += counts[low]
    return total


@compiled
def log_scaled(values: Any, scale: Any) -> None:
    """Replace values [candidates] of at least 0 by `log(1 + scale * value)`."""
    for candidate in range(len(values)):
        if values[candidate] > 0:
            values[candidate] = np.log1p(scale * values[candidate])


@compiled
def pair_features(newest: Any, second: int, matrices: Any, events: Any, position: Any, rows: Any, out: Any) -> None:
    """Write the features of pairs to `out`, in the order of the group.

    Args:
        newest: [items] rows of the items that stand for the context, newest first.
        second: row of the shopper's second newest item, -1 without one.
        matrices: transitions, co-occurrences, as in `add_counts`.
        events: [all items] events of each item.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        rows: [candidates] rows of the candidates.
        out: [features, candidates] zeros to fill.
    """
    if len(newest) == 0:
        return
    transitions, cooccurrences = matrices
    zero = np.float32(0)
    root = np.empty(len(rows), np.float32)
    for candidate in range(len(rows)):
        root[candidate] = np.float32(1) / np.sqrt(events[rows[candidate]] + SMOOTHING)
    pairs, follows = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    weight, follow_weight, total_weight = np.float32(1), np.float32(1), zero
    for place in range(len(newest)):
        row = newest[place]
        pairs[:], follows[:] = zero, zero
        add_counts(cooccurrences, row, position, pairs)
        add_counts(transitions, row, position, follows)
        smoothed = events[row] + SMOOTHING
        share, item_root = np.float32(1) / smoothed, np.float32(1) / np.sqrt(smoothed)
        follow_share = follow_weight / smoothed
        for candidate in range(len(rows)):
            count = pairs[candidate]
            cosine = count * item_root * root[candidate]
            out[0, candidate] = max(out[0, candidate], count * share)
            out[1, candidate] = max(out[1, candidate], cosine)
            out[2, candidate] += count
            out[3, candidate] += np.float32(count > 0)
            out[4, candidate] += weight * cosine
            out[7, candidate] = max(out[7, candidate], follows[candidate] * follow_share)
        if place == 0:
            last_share = np.float32(1) / (events[row] + LAST_SMOOTHING)
            for candidate in range(len(rows)):
                out[5, candidate] = pairs[candidate] * item_root * root[candidate]
                out[6, candidate] = pairs[candidate] * share
                out[8, candidate] = follows[candidate] * last_share
                out[9, candidate] = follows[candidate]
                out[11, candidate] = max(pairs[candidate] - follows[candidate], zero)
        total_weight += weight
        weight *= MEAN_DECAY
        follow_weight *= TRANSITION_DECAY
    if second >= 0:
        add_counts(transitions, second, position, out[10])
        out[10] /= events[second] + LAST_SMOOTHING
    for candidate in range(len(rows)):
        row = rows[candidate]
        out[12, candidate] = count_of(transitions, row, newest[0]) / (events[row] + LAST_SMOOTHING)
    out[3] /= np.float32(len(newest))
    out[4] /= total_weight
    for feature in (0, 6, 7, 8, 10, 12):
        log_scaled(out[feature], PROBABILITY_SCALE)
    for feature in (1, 4, 5):
        log_scaled(out[feature], COSINE_SCALE)
    for feature in (2, 9, 11):
        log_scaled(out[feature], np.float32(1))


@compiled
def order_features(session: Any, matrices: Any, position: Any, out: Any) -> None:
    """Write to `out` whether candidates come after the session's items, 1, or before them, -1.

    The order of a pair is `(after - before) / (after + before + 2)` of the number of sessions' events in either order.

    Args:
        session: [items] rows of the session's items, newest first.
        matrices: co-occurrences and directed co-occurrences, as in `add_counts`.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        out: [4, candidates] zeros to fill: order with the last item, mean order, order of the sums, least order.
    """
    cooccurrences, followed = matrices
    ordered = min(len(session), ORDERED_ITEMS)
    candidates = out.shape[1]
    both, after, pooled = (
        np.empty(candidates, np.float32),
        np.empty(candidates, np.float32),
        np.zeros(candidates, np.float32),
    )
    for place in range(ordered):
        both[:], after[:] = np.float32(0), np.float32(0)
        add_counts(cooccurrences, session[place], position, both)
        add_counts(followed, session[place], position, after)
        for candidate in range(candidates):
            difference = after[candidate] + after[candidate] - both[candidate]
            order = difference / (both[candidate] + ORDER_SMOOTHING)
            if place == 0:
                out[0, candidate], out[3, candidate] = order, order
            out[1, candidate] += order
            out[2, candidate] += difference
            pooled[candidate] += both[candidate]
            out[3, candidate] = min(out[3, candidate], order)
    for candidate in range(candidates):
        out[1, candidate] /= np.float32(max(ordered, 1))
        out[2, candidate] /= pooled[candidate] + ORDER_SMOOTHING
