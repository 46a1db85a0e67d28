"""Slices of a stream: kinds of events whose figures are reported apart. They depend on the data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from peft_adapters.ranking.shoppers import Shoppers
from services.lab.offline.judging import FIRST_EVENTS, Flags, Floats, Ranks, hits, ndcg, ranks_of
from services.lab.offline.stream import Stream
from streams.examples import Example

KNOWN = "known"  # the headline of data with guests
DESCRIPTIONS = {
    "guests": "events without a user id",
    KNOWN: "events with a user id",
    "session_first": "the first event of a session",
    "session_2_3": "the second and third event of a session",
    "session_later": "later events of a session",
    "cold_item": f"the first {FIRST_EVENTS} events of an item",
    "repeat": "the shopper had the item before",
    "not_repeat": "the shopper did not have the item before",
    "unseen_query": "after a search whose query no earlier event has",
    "known_query": "after a search whose query an earlier event has",
}


def slices(stream: Stream, warm_up: Sequence[Example] = ()) -> dict[str, Flags]:
    """Return by slice whether each click or purchase of a stream is in it, [events]; no slice is empty.

    Args:
        stream: the stream that is judged.
        warm_up: earlier events, which count as history.
    """
    shoppers, had, item_events = Shoppers(), set[tuple[str, str]](), dict[str, int]()
    queries = set[str]()
    columns: dict[str, list[int]] = {"place": [], "nth": [], "had": [], "searched": [], "known_query": []}
    for example in (*warm_up, *stream.examples):
        who, pair = (example.user_id, example.session_id, example.ts), (example.user_id, example.item_id)
        ages = shoppers.context(*who).ages
        item_events[example.item_id] = item_events.get(example.item_id, 0) + 1
        columns["place"].append(1 + ages.count(0))
        columns["nth"].append(item_events[example.item_id])
        columns["had"].append(pair in had)
        query = (example.query or "").casefold()
        columns["searched"].append(bool(query))
        columns["known_query"].append(query in queries)
        had.add(pair)
        queries |= {query} - {""}
        shoppers.update(*who, 0)
    place, nth, repeat, searched, known = (np.array(values[len(warm_up) :]) for values in columns.values())
    guest = np.array([example.user_id in stream.guests for example in stream.examples])
    flags = {
        "guests": guest,
        KNOWN: ~guest & bool(guest.any()),
        "session_first": place == 1,
        "session_2_3": (place == 2) | (place == 3),
        "session_later": place > 3,
        "cold_item": nth <= FIRST_EVENTS,
        "repeat": repeat == 1,
        "not_repeat": repeat == 0,
        "unseen_query": (searched == 1) & (known == 0),
        "known_query": (searched == 1) & (known == 1),
    }
    return {name: flag for name, flag in flags.items() if flag.any()}


def slice_figures(ranks: Ranks, parts: Mapping[str, Flags]) -> dict[str, float]:
    """Return the number of events, HR@20 and NDCG@20 of each slice.

    Args:
        ranks: ranks of the judged events.
        parts: by slice, whether each judged event is in it, [events].
    """
    of_events: dict[str, Floats] = {"hr20": hits(ranks_of(ranks)), "ndcg20": ndcg(ranks_of(ranks))}
    values: dict[str, float] = {}
    for name, flags in parts.items():
        values[f"events_{name}"] = float(flags.sum())
        values |= {f"{figure}_{name}": float(value[flags].mean()) for figure, value in of_events.items()}
    return values
