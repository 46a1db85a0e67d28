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
        found: arrays to fill, of capacity: slots, and by slot the similarity (zeros) and the position of the newest
            shared item.
    """
    items, older, lengths, last_ms, heads, _, newest = table
    slots_found, similarity, shared = found
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
            if similarity[slot] == 0:
                slots_found[count] = slot
                shared[slot] = position
                count += 1
            similarity[slot] += weights[place]
            limit = number
            entry = older[slot, position]
    for index in range(count):
        slot = slots_found[index]
        age = max(0, now_ms - last_ms[slot]) / age_scale
        similarity[slot] *= np.exp(np.float32(-age)) / np.sqrt(np.float32(lengths[slot] * length))
    return count


@compiled
def least_similarity(slots: Any, similarity: Any) -> Any:
    """Return the similarity of the last of the `NEIGHBOURS` most similar sessions; 0 if there are no more than that."""
    if len(slots) <= NEIGHBOURS:
        return np.float32(0)
    place = len(slots) - NEIGHBOURS
    return np.partition(similarity[slots], place)[place]


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
    table_items, _, lengths, _, heads, _, _ = table
    weights, either, after, age_scale = decays
    position = np.full(len(heads), -1, np.int32)
    for column in range(len(columns)):
        position[columns[column]] = column
    slots_found = np.empty(len(lengths), np.int32)
    similarity, shared = np.zeros(len(lengths), np.float32), np.empty(len(lengths), np.int32)
    for context in range(len(items)):
        known, current = 0, 0
        for age in ages[context]:
            known += age >= 0
            current += age == 0
        rows = items[context, : current if current > 0 else known]
        found = (slots_found, similarity, shared)
        count = similar_sessions(rows, now_ms[context], table, weights, age_scale, found)
        least, total = least_similarity(slots_found[:count], similarity), np.float32(0)
        for index in range(count):
            slot = slots_found[index]
            session = table_items[slot, : lengths[slot]]
            if similarity[slot] >= least and not is_run_of(session, items[context, :current]):
                total += similarity[slot]
                add_neighbour(session, shared[slot], similarity[slot], (either, after), position, out[:, context])
            similarity[slot] = 0
        totals[context] = total
