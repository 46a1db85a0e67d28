"""Compiled loops over a shopper's history: what it says of the candidates, of the shopper, and of prices."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

MS_A_DAY, MS_A_MINUTE = 86_400_000.0, 60_000.0
FOLLOWING_ITEMS = 5  # items after an earlier time that the shopper took the last item
USUAL_REPEAT_RATE, SMOOTHING = np.float32(0.2), np.float32(5)


@compiled
def item_features(per_item: Any, rows: Any, out: Any) -> None:
    """Write what the counters say of the candidates alone to `out`.

    Args:
        per_item: [all items] each: events, repeated, popularity now, events since the last and since the first event.
        rows: [candidates] rows of the candidates.
        out: [5, candidates] array to fill.
    """
    events, repeated, popularity_now, since_last, since_first = per_item
    one = np.float32(1)
    for candidate in range(len(rows)):
        row = rows[candidate]
        out[0, candidate] = np.log1p(events[row])
        out[1, candidate] = np.log((repeated[row] + one) / ((events[row] + SMOOTHING) * USUAL_REPEAT_RATE))
        out[2, candidate] = np.log1p(np.float32(10) * popularity_now[row])
        out[3, candidate] = np.log1p(since_last[row])
        out[4, candidate] = np.log1p(since_first[row])


@compiled
def shopper_item_features(items: Any, ages: Any, elapsed_ms: Any, position: Any, out: Any) -> None:
    """Write how the shopper met the candidates before to `out`.

    Args:
        items: [items] rows of the shopper's items, newest first.
        ages: [items] age of each item in sessions, 0 for the current session.
        elapsed_ms: [items] time since each item's event.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        out: [6, candidates] zeros to fill: time and sessions since the shopper had the item in an earlier session,
            whether they did, times by number of sessions, what followed the last item, times in this session.
    """
    sessions = 0
    for index in range(len(items)):
        sessions += index == 0 or ages[index] != ages[index - 1]
    for index in range(len(items)):
        candidate = position[items[index]]
        if candidate < 0:
            continue
        if ages[index] == 0:
            out[5, candidate] += np.float32(1)
            continue
        if out[2, candidate] == 0:
            out[0, candidate] = np.log1p(np.float32(elapsed_ms[index] / MS_A_DAY))
            out[1, candidate] = np.log1p(np.float32(ages[index]))
            out[2, candidate] = np.float32(1)
        out[3, candidate] += np.float32(1) / np.float32(sessions)
    for index in range(1, len(items)):
        if items[index] != items[0]:
            continue
        for distance in range(1, min(FOLLOWING_ITEMS, index - 1) + 1):
            candidate = position[items[index - distance]]
            if candidate >= 0:
                out[4, candidate] = max(out[4, candidate], np.float32(1) / np.float32(distance))


@compiled
def context_features(items: Any, ages: Any, elapsed_ms: Any, events: Any, out: Any) -> None:
    """Write what does not depend on the candidate to `out`.

    Args:
        items: [items] rows of the shopper's items, newest first.
        ages: [items] age of each item in sessions, 0 for the current session.
        elapsed_ms: [items] time since each item's event.
        events: [all items] events of each item.
        out: [7, candidates] array to fill: length of session and history, number of sessions, no history, share of
            items had more than once, time since the last event, evidence of the last item.
    """
    in_session, repeated = 0, 0
    for index in range(len(items)):
        in_session += ages[index] == 0
        same = 0
        for other in range(len(items)):
            same += items[other] == items[index]
        repeated += same > 1
    out[0] = np.log1p(np.float32(in_session))
    out[1] = np.log1p(np.float32(len(items) - in_session))
    out[3] = np.float32(in_session == len(items))
    if len(items) == 0:
        out[2], out[4], out[5], out[6] = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        return
    out[2] = np.log1p(np.float32(ages[len(items) - 1]))
    out[4] = np.float32(repeated) / np.float32(len(items))
    out[5] = np.log1p(np.float32(elapsed_ms[0] / MS_A_MINUTE))
    out[6] = np.log1p(events[items[0]])


@compiled
def price_features(newest: Any, log_prices: Any, rows: Any, out: Any) -> None:
    """Write the difference of log prices of each candidate and the context's items, and its size, to `out`.

    Args:
        newest: [items] rows of the items that stand for the context.
        log_prices: [all items] logarithm of each price, NaN where it is unknown.
        rows: [candidates] rows of the candidates.
        out: [2, candidates] zeros to fill; they stay 0 where a price is unknown.
    """
    total, priced = np.float32(0), 0
    for row in newest:
        if not np.isnan(log_prices[row]):
            total += log_prices[row]
            priced += 1
    if priced == 0:
        return
    mean = total / np.float32(priced)
    for candidate in range(len(rows)):
        difference = log_prices[rows[candidate]] - mean
        if not np.isnan(difference):
            out[0, candidate] = difference
            out[1, candidate] = abs(difference)
