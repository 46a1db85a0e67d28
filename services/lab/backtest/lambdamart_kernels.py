"""Compiled loops of the baseline `lambdamart`: choice of candidates, and features of candidates."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

NEXT_ITEMS = 5  # items after an earlier occurrence of the newest one that count as taken next
MS_PER_MINUTE, MS_PER_HOUR, MS_PER_DAY = 60_000.0, 3_600_000.0, 86_400_000.0

OF_SHOPPER = ("sessions_since", "days_since", "gap_over_mean", "sessions_share", "next_last_time")
OF_ITEM = ("events", "age_hours", "idle_minutes", "repeat_rate", "price", "price_over_session")
OF_CONTEXT = (
    *("session_items", "history_items", "sessions", "guest", "repeats_share", "pause_minutes", "hour", "weekday"),
    *("newest_events", "similar_sessions"),
)


@compiled
def mark_best(values: Any, limit: int, chosen: Any, scratch: Any) -> None:
    """Mark the `limit` items of the largest positive values; of equal values, those of the lowest rows.

    Args:
        values: [items] values of one source of candidates.
        limit: number of items to mark.
        chosen: [items] flags to set.
        scratch: [items] working memory.
    """
    count = 0
    for row in range(len(values)):
        if values[row] > 0:
            scratch[count] = values[row]
            count += 1
    least, room = np.float32(0), count
    if count > limit:
        least = np.partition(scratch[:count], count - limit)[count - limit]
        room = limit
        for place in range(count):
            room -= scratch[place] > least
    for row in range(len(values)):
        if values[row] > least:
            chosen[row] = True
        elif values[row] == least and least > 0 and room > 0:
            chosen[row] = True
            room -= 1


@compiled
def history_features(rows: Any, times: Any, now_ms: Any, stats: Any, scratch: Any, out: Any) -> None:
    """Write `OF_SHOPPER`, `OF_ITEM` and `OF_CONTEXT` of one context's candidates; what is not known stays NaN.

    Args:
        rows: items [items] of the context, newest first, their ages [items] in sessions, and the candidates' rows.
        times: [items] time of the last event of each item of the context by this shopper, epoch milliseconds, -1
            where it is not known.
        now_ms: time of the context, epoch milliseconds, and whether the shopper is a guest.
        stats: per item [all items]: events, first and last time (epoch milliseconds), repeats, sum of gaps between
            them (milliseconds) and the logarithm of the price, NaN without one.
        scratch: [4, all items] zeros, left as zeros: number of earlier sessions' events, age of the newest in
            sessions, its time, and the share taken next.
        out: [candidates, features] array of NaN to fill.
    """
    items, ages, candidates = rows
    now, guest = now_ms
    events, first_ms, last_ms, repeats, gaps_ms, log_price = stats
    in_session, in_history, sessions, prices, priced, again, newest_ms = 0, 0, 0, 0.0, 0, 0, -1.0
    for index in range(len(items)):
        row, age = items[index], ages[index]
        sessions = max(sessions, age)
        newest_ms = max(newest_ms, times[index])
        if age == 0:
            in_session += 1
        else:
            in_history += 1
            if scratch[0, row] == 0:
                scratch[1, row] = age
                scratch[2, row] = times[index]
            else:
                again += 1
            scratch[0, row] += 1
        if (age == 0 or in_session == 0) and not np.isnan(log_price[row]):
            prices += log_price[row]
            priced += 1
        if index > 0 and row == items[0]:
            for step in range(1, min(NEXT_ITEMS, index - 1) + 1):
                following = items[index - step]
                scratch[3, following] = max(scratch[3, following], 1.0 / step)
    for place in range(len(candidates)):
        row, values = candidates[place], out[place]
        if scratch[0, row] > 0:
            values[0] = np.log1p(scratch[1, row])
            if scratch[2, row] >= 0:
                gap = max(0.0, now - scratch[2, row])
                values[1] = np.log1p(gap / MS_PER_DAY)
                if repeats[row] > 0:
                    values[2] = np.log((gap + MS_PER_HOUR) / (gaps_ms[row] / repeats[row] + MS_PER_HOUR))
            values[3] = scratch[0, row] / max(1, sessions)
        values[4] = scratch[3, row]
        values[5] = np.log1p(events[row])
        if events[row] > 0:
            values[6] = np.log1p(max(0.0, now - first_ms[row]) / MS_PER_HOUR)
            values[7] = np.log1p(max(0.0, now - last_ms[row]) / MS_PER_MINUTE)
        values[8] = np.log((repeats[row] + 1.0) / (events[row] + 5.0))
        values[9] = log_price[row]
        if priced > 0:
            values[10] = log_price[row] - prices / priced
        values[11] = in_session
        values[12] = in_history
        values[13] = sessions
        values[14] = guest
        values[15] = again / max(1, in_history)
        if newest_ms >= 0:
            values[16] = np.log1p(max(0.0, now - newest_ms) / MS_PER_MINUTE)
        values[17] = (now // MS_PER_HOUR) % 24
        values[18] = (now // MS_PER_DAY) % 7
        if len(items) > 0:
            values[19] = np.log1p(events[items[0]])
    for row in items:
        scratch[:, row] = 0
