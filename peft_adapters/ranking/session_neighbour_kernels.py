"""Compiled loops over kept sessions: linking the sessions of an item, and scores of candidates from similar sessions.

A table of sessions is the tuple `(items, older, lengths, last_ms, heads, slots, newest)`:

- `items` [capacity, width] catalogue rows of each slot's session, oldest first; only the first `lengths` are valid.
- `older` [capacity, width] for each entry, the entry with the same item in the next older session; -1 ends the chain.
- `lengths` [capacity] number of items of each session, 0 if it was cleared.
- `last_ms` [capacity] time of each session's last event, epoch milliseconds.
- `heads` [all items] entry of each item in the newest session that has it, -1 without any.
- `slots`, the number of slots of the ring, and `newest`, the number of the newest session, counted from 0.

An entry is `slot * width + position`. Session `n` is in slot `n % slots`. A chain descends in session numbers, and
slots are reused in that order: behind an entry whose slot was reused, which no longer fits in, there is none left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled

LINKED_SESSIONS = 100  # newest sessions of an item that are compared with a context
CONTEXT_ITEMS = 15  # newest items of a context that are looked up
NEIGHBOURS = 200  # most similar sessions that score candidates
SCORES = 3
MS_PER_DAY = 86_400_000.0
SHARE_SCALE = np.float32(100)  # of a candidate's share of the similar sessions, before the logarithm
_MOST_FOUND = LINKED_SESSIONS * CONTEXT_ITEMS
_BUCKETS = 4_096  # of the hash table of found sessions, a power of 2 more than twice their number


@compiled
def session_number(slot: int, slots: int, newest: int) -> int:
    """Return the number of the newest session that was given a slot; negative if none was."""
    return newest - (newest - slot) % slots


@compiled
def number_of_entry(entry: int, row: int, table: Any) -> int:
    """Return the number of an entry's session, or -1 if the entry is none or no longer holds the item.

    Args:
        entry: the entry to look at, -1 for none.
        row: catalogue row of the item that it is expected to hold.
        table: the table of sessions.
    """
    items, _, lengths, _, _, slots, newest = table
    if entry < 0:
        return -1
    slot, position = entry // items.shape[1], entry % items.shape[1]
    if position >= lengths[slot] or items[slot, position] != row:
        return -1
    return session_number(slot, slots, newest)


@compiled
def link_entry(slot: int, position: int, table: Any) -> None:
    """Put an entry into the chain of its item, unless the session is in it or `LINKED_SESSIONS` newer ones are.

    Args:
        slot: slot of the session.
        position: position of the item in the session.
        table: the table of sessions.
    """
    items, older, _, _, heads, slots, newest = table
    width = items.shape[1]
    row, number = items[slot, position], session_number(slot, slots, newest)
    before, entry, limit = -1, heads[row], newest + 1
    for _ in range(LINKED_SESSIONS):
        found = number_of_entry(entry, row, table)
        if found == number:
            return
        if found < number or found >= limit:
            older[slot, position] = entry if 0 <= found < limit else -1
            if before < 0:
                heads[row] = slot * width + position
            else:
                older[before // width, before % width] = slot * width + position
            return
        before, limit = entry, found
        entry = older[entry // width, entry % width]


@compiled
def append_item(slot: int, row: int, ts_ms: int, table: Any) -> None:
    """Append an item to a session that has room for it.

    Args:
        slot: slot of the session.
        row: catalogue row of the item.
        ts_ms: time of the event, epoch milliseconds.
        table: the table of sessions.
    """
    items, _, lengths, last_ms, _, _, _ = table
    position = lengths[slot]
    items[slot, position] = row
    lengths[slot] = position + 1
    last_ms[slot] = max(last_ms[slot], ts_ms)
    link_entry(slot, position, table)


@compiled
def link_all(table: Any) -> None:
    """Build all chains from the sessions alone; they equal the chains of incremental updates as far as scores go."""
    _, _, lengths, _, heads, slots, newest = table
    heads[:] = -1
    for number in range(max(0, newest + 1 - slots), newest + 1):
        slot = number % slots
        for position in range(lengths[slot]):
            link_entry(slot, position, table)


@compiled
def is_run_of(session: Any, current: Any) -> bool:
    """Return whether a session is a run of the current one: itself as of earlier, or one that has no other item.

    Args:
        session: [items] rows of the session, oldest first.
        current: [items] rows of the current session, newest first.
    """
    for start in range(len(current)):
        matched = 0
        while (
            matched < len(session)
            and start + matched < len(current)
            and session[len(session) - 1 - matched] == current[start + matched]
        ):
            matched += 1
        if matched == len(session) or (matched > 0 and start + matched == len(current)):
            return True
    return False


@compiled
def room_for_found() -> Any:
    """Return arrays for the sessions that are similar to one context.

    Returns:
        A hash table [4096] of indices into the others; slots, similarities, and positions of the newest shared item.
    """
    return (
        np.empty(_BUCKETS, np.int32),
        np.empty(_MOST_FOUND, np.int32),
        np.empty(_MOST_FOUND, np.float32),
        np.empty(_MOST_FOUND, np.int32),
    )


@compiled
def similar_sessions(context: Any, now_ms: int, table: Any, weights: Any, age_scale: Any, found: Any) -> int:
    """Find the sessions that share items with a context, and return their number.

    `similarity = sum of the shared items' weights / sqrt(context length * session length) * exp(-age / scale)`, the
    first two factors of STAN (Garg et al. 2019).

    Args:
        context: [items] rows that sessions are compared by, newest first.
        now_ms: time of the context, epoch milliseconds.
        table: the table of sessions.
        weights: [CONTEXT_ITEMS] weight of a shared item by its position in the context.
        age_scale: scale of the decay by age, milliseconds.
        found: arrays of `room_for_found` to fill.
    """
    items, older, lengths, last_ms, heads, _, newest = table
    buckets, slots_found, similarity, shared = found
    buckets[:] = -1
    width, count = items.shape[1], 0
    length = min(len(context), CONTEXT_ITEMS)
    for place in range(length):
        row, is_repeat = context[place], False
        for earlier in range(place):
            is_repeat |= context[earlier] == row
        if is_repeat:
            continue
        entry, limit = heads[row], newest + 1
        for _ in range(LINKED_SESSIONS):
            number = number_of_entry(entry, row, table)
            if number < 0 or number >= limit:
                break
            slot, position = entry // width, entry % width
            bucket = slot % _BUCKETS
            while buckets[bucket] >= 0 and slots_found[buckets[bucket]] != slot:
                bucket = (bucket + 1) % _BUCKETS
            if buckets[bucket] < 0:
                buckets[bucket] = count
                slots_found[count], similarity[count], shared[count] = slot, np.float32(0), position
                count += 1
            similarity[buckets[bucket]] += weights[place]
            limit = number
            entry = older[slot, position]
    for index in range(count):
        slot = slots_found[index]
        age = max(0, now_ms - last_ms[slot]) / age_scale
        similarity[index] *= np.exp(np.float32(-age)) / np.sqrt(np.float32(lengths[slot] * length))
    return count


@compiled
def least_similarity(similarity: Any) -> Any:
    """Return the similarity of the last of the `NEIGHBOURS` most similar sessions; 0 if there are no more than that."""
    if len(similarity) <= NEIGHBOURS:
        return np.float32(0)
    place = len(similarity) - NEIGHBOURS
    return np.partition(similarity, place)[place]


@compiled
def add_neighbour(session: Any, shared: int, similarity: Any, decays: Any, position: Any, out: Any) -> None:
    """Add the scores of candidates in one similar session to `out`.

    Args:
        session: [items] rows of the session, oldest first.
        shared: position in it of the newest shared item.
        similarity: similarity of the session to the context.
        decays: weights [width] by distance in either direction, and by distance after the shared item.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        out: [SCORES, candidates] sums to add to.
    """
    either, after = decays
    for place in range(len(session)):
        candidate = position[session[place]]
        if candidate >= 0:
            distance = place - shared
            out[0, candidate] += similarity * either[abs(distance)]
            if distance > 0:
                out[1, candidate] += similarity * after[distance]
            out[2, candidate] += similarity


@compiled
def add_neighbours(own: Any, in_session: int, now_ms: Any, sessions: Any, position: Any, found: Any, out: Any) -> Any:
    """Add the scores of candidates for one context to `out`.

    Args:
        own: [items] rows of the context's items, newest first.
        in_session: number of them that belong to the current session.
        now_ms: time of the context, epoch milliseconds.
        sessions: the table of sessions, and the decays of `SessionNeighbours`.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        found: arrays of `room_for_found`.
        out: [SCORES, candidates] sums to add to.

    Returns:
        The sum of similarities, and the number of sessions that share an item.
    """
    table, (weights, either, after, age_scale) = sessions
    table_items, _, lengths, _, _, _, _ = table
    _, slots_found, similarity, shared = found
    current = own[:in_session]
    count = similar_sessions(current if in_session > 0 else own, now_ms, table, weights, age_scale, found)
    least, total = least_similarity(similarity[:count]), np.float32(0)
    for index in range(count):
        session = table_items[slots_found[index], : lengths[slots_found[index]]]
        if similarity[index] >= least and not is_run_of(session, current):
            total += similarity[index]
            add_neighbour(session, shared[index], similarity[index], (either, after), position, out)
    return total, count


@compiled
def neighbour_scores(
    items: Any, ages: Any, now_ms: Any, columns: Any, table: Any, decays: Any, out: Any, totals: Any
) -> None:
    """Write the scores of candidates for a batch of contexts to `out`, and the sums of similarities to `totals`.

    Args:
        items: [contexts, items] rows of the contexts' items, newest first, -1 for padding.
        ages: [contexts, items] ages in sessions, 0 for the current session, -1 for padding.
        now_ms: [contexts] time of each context, epoch milliseconds.
        columns: [candidates] rows of the candidates.
        table: the table of sessions.
        decays: weights by position in the context, by distance, by distance after, and the scale of the decay by age.
        out: [SCORES, contexts, candidates] zeros to add to.
        totals: [contexts] array to fill.
    """
    heads = table[4]
    position = np.full(len(heads), -1, np.int32)
    for column in range(len(columns)):
        position[columns[column]] = column
    found = room_for_found()
    for context in range(len(items)):
        known, current = 0, 0
        for age in ages[context]:
            known += age >= 0
            current += age == 0
        totals[context], _ = add_neighbours(
            items[context, :known], current, now_ms[context], (table, decays), position, found, out[:, context]
        )


@compiled
def neighbour_features(own: Any, in_session: int, neighbours: Any, position: Any, found: Any, out: Any) -> None:
    """Write what similar sessions say of the candidates to `out`.

    Args:
        own: [items] rows of the context's items, newest first.
        in_session: number of them that belong to the current session.
        neighbours: the table of sessions, the decays, and the time of the newest event in it, epoch milliseconds.
        position: [all items] position of each item among the candidates, -1 if it is not a candidate.
        found: arrays of `room_for_found`.
        out: [SCORES + 2, candidates] zeros to fill: shares of the candidates in the similar sessions by each score, the
            sum of similarities, the number of sessions that share an item.
    """
    if len(own) == 0:
        return
    table, decays, newest_ms = neighbours
    total, count = add_neighbours(own, in_session, newest_ms, (table, decays), position, found, out[:SCORES])
    if total > 0:
        factor = SHARE_SCALE / total
        for score in range(SCORES):
            for candidate in range(out.shape[1]):
                if out[score, candidate] > 0:
                    out[score, candidate] = np.log1p(factor * out[score, candidate])
    out[SCORES] = np.log1p(total)
    out[SCORES + 1] = np.log1p(np.float32(count))
