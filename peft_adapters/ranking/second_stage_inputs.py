"""The compiled loop over contexts that computes all inputs which only the second stage uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.pair_kernels import order_features, pair_features
from peft_adapters.ranking.session_neighbour_kernels import neighbour_features, room_for_found
from peft_adapters.ranking.shopper_kernels import (
    context_features,
    item_features,
    price_features,
    shopper_item_features,
)
from peft_adapters.ranking.similarity_kernels import vector_features, word_features

NEWEST_ITEMS = 20  # items that stand for a context: the newest of the session or, without any, of the history


@compiled
def lengths(ages: Any) -> Any:
    """Return the numbers of items in a context and in its current session.

    Args:
        ages: [items] age of each item in sessions, newest first; -1 for padding, which comes last.
    """
    length, in_session = 0, 0
    while length < len(ages) and ages[length] >= 0:
        in_session += ages[length] == 0
        length += 1
    return length, in_session


@compiled
def second_stage_inputs(
    contexts: Any,
    counts: Any,
    per_item: Any,
    facts: Any,
    vectors: Any,
    neighbours: Any,
    rows: Any,
    starts: Any,
    out: Any,
) -> None:
    """Write the inputs that only the second stage uses, in the order of `SECOND_STAGE_FEATURES`, to `out`.

    Args:
        contexts: rows of the contexts' items, newest first, -1 for padding at the end; age of each in sessions; time
            since each one's event, milliseconds; place of each in the table of query vectors; [contexts, items] each.
        counts: transitions, co-occurrences and directed co-occurrences, as in `pair_kernels.add_counts`.
        per_item: counters [all items], as in `shopper_kernels.item_features`.
        facts: log prices, words and squared inverse document frequencies, as in `item_facts.ItemFacts`.
        vectors: table [.., dim] of vectors in the query role and in the candidate role, text vectors [all items, dim],
            and places [contexts, candidates] of the candidates in the second table.
        neighbours: past sessions, as in `session_neighbour_kernels.neighbour_features`.
        rows: [contexts, candidates] rows of each context's candidates, distinct in a context.
        starts: [groups] index of the first feature of each group.
        out: [contexts, SECOND_STAGE_FEATURES, candidates] zeros to fill.
    """
    items, ages, elapsed_ms, places = contexts
    transitions, cooccurrences, followed = counts
    log_prices, words, squared_idf = facts
    query_table, candidate_table, text_table, candidate_places = vectors
    events = per_item[0]
    position = np.full(len(events), -1, np.int32)
    found = room_for_found()
    for context in range(len(items)):
        candidates, features = rows[context], out[context]
        for candidate in range(len(candidates)):
            position[candidates[candidate]] = candidate
        length, in_session = lengths(ages[context])
        own, own_ages, own_ms = items[context, :length], ages[context, :length], elapsed_ms[context, :length]
        count = min(in_session if in_session > 0 else length, NEWEST_ITEMS)
        newest, own_places = own[:count], places[context]
        second, second_place = (own[1], own_places[1]) if length > 1 else (-1, -1)
        pair_features(
            newest, second, (transitions, cooccurrences), events, position, candidates, features[starts[0] : starts[1]]
        )
        order_features(own[:in_session], (cooccurrences, followed), position, features[starts[1] : starts[2]])
        item_features(per_item, candidates, features[starts[2] : starts[3]])
        shopper_item_features(own, own_ages, own_ms, position, features[starts[3] : starts[4]])
        price_features(newest, log_prices, candidates, features[starts[4] : starts[5]])
        context_features(own, own_ages, own_ms, events, features[starts[5] : starts[6]])
        vector_features(
            (own_places[:count], second_place, query_table, newest, text_table),
            (candidate_places[context], candidate_table, candidates),
            features[starts[6] : starts[7]],
        )
        word_features(newest, words, squared_idf, candidates, features[starts[7] : starts[8]])
        neighbour_features(own, in_session, neighbours, position, found, features[starts[8] :])
        for candidate in range(len(candidates)):
            position[candidates[candidate]] = -1
