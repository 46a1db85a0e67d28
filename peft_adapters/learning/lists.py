"""Observation of shown lists: contexts and features as of the time each list was shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch, ShownList
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counter_kernels import PROBABILITY_SCALE, SMOOTHING_EVENTS
from peft_adapters.ranking.counters import NEIGHBOUR_WINDOW_ITEMS, PAIR_WINDOW_ITEMS, SKIP_WINDOW_ITEMS, Counters
from peft_adapters.ranking.features import (
    ContextWeights,
    affinity_weights,
    context_weights,
    session_lift,
)
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from peft_adapters.settings import COUNTER_FEATURES

_CHUNK_LISTS = 64  # bounds memory: features are computed for all pairs of lists and items of a chunk


class JudgedLists(NamedTuple):
    """Predictions for lists.

    Attributes:
        scores: per list, [items of the list] scores.
        probabilities: by outcome, [shown] probabilities; empty before any is learnt.
    """

    scores: list[Tensor]
    probabilities: dict[str, Tensor]


def observe_lists(
    lists: Sequence[ShownList],
    *,
    rows: Mapping[str, int],
    counters: Counters,
    shoppers: Shoppers,
    query_vector: Tensor | None = None,
) -> ListBatch:
    """Return lists with contexts and features as of when each was shown.

    A list is learnt minutes later, when its own clicks have been counted as positives. So the context is the shopper's
    history before the list, and the counts of the list's own clicks are subtracted. Otherwise a head would learn to
    recognise clicked items by their having been counted.

    Args:
        lists: lists in the order of learning.
        rows: catalogue row of each item id.
        counters: counters before the lists are learnt.
        shoppers: present states of shoppers.
        query_vector: [lists, dim] vector of each list's search query; None if no list has one.

    Raises:
        KeyError: an item is not in the catalogue.
    """
    items = np.array([rows[item_id] for shown in lists for item_id in shown.item_ids], dtype=np.int64)
    owner = np.repeat(np.arange(len(lists)), [len(shown.item_ids) for shown in lists])
    contexts = pad(
        [shoppers.context(shown.user_id, shown.session_id, shown.ts, only_before=True) for shown in lists],
        [shoppers.passed_over(shown.user_id, shown.ts, only_before=True) for shown in lists],
    )
    weights = context_weights(contexts, len(counters.events))
    features = _counter_features(counters, contexts, items, owner)
    _subtract_clicks(features, _list_clicks(lists, rows, shoppers), weights, counters)
    context_rows = contexts.rows()
    return ListBatch(
        user_ids=tuple(shown.user_id for shown in lists),
        shown_ms=tuple(shown.ts for shown in lists),
        items=items,
        owner=owner,
        position=np.array([position for shown in lists for position in shown.positions], dtype=np.int64),
        clicked=np.array([flag for shown in lists for flag in shown.clicked], dtype=np.bool_),
        bought=np.array([flag for shown in lists for flag in shown.bought], dtype=np.bool_),
        is_correction=np.array([shown.is_correction for shown in lists], dtype=np.bool_)[owner],
        weight=torch.tensor([shown.weight for shown in lists], dtype=torch.float32),
        contexts=contexts,
        counter_features=features,
        affinity_weights=affinity_weights(weights, context_rows),
        context_rows=context_rows,
        query_vector=query_vector,
    )


def _counter_features(counters: Counters, contexts: Contexts, items: IntArray, owner: IntArray) -> Tensor:
    """Return the features [COUNTER_FEATURES, shown], with the counts of the lists' own clicks."""
    counted = CounterFeatures.of(counters)
    features = np.empty((len(COUNTER_FEATURES), len(items)), dtype=np.float32)
    for start in range(0, len(contexts), _CHUNK_LISTS):
        end = min(start + _CHUNK_LISTS, len(contexts))
        part = contexts.part(slice(start, end))
        first, last = np.searchsorted(owner, (start, end))
        columns, column = np.unique(items[first:last], return_inverse=True)
        whole = counted.features(part, columns)
        features[:, first:last] = whole[:, owner[first:last] - start, column]
    return torch.from_numpy(features)


class _ListClick(NamedTuple):
    """A click on an item of a list, as it was counted."""

    owner: int
    place: int  # index in the dimension `shown`
    item: int
    before: list[int]  # rows before it in its session, newest first


def _list_clicks(lists: Sequence[ShownList], rows: Mapping[str, int], shoppers: Shoppers) -> Iterator[_ListClick]:
    start = 0
    for owner, shown in enumerate(lists):
        places = {
            rows[item_id]: start + place
            for place, (item_id, *flags) in enumerate(zip(shown.item_ids, shown.clicked, shown.bought, strict=True))
            if any(flags)
        }
        start += len(shown.item_ids)
        for item, before in shoppers.since(shown.user_id, shown.ts, limit=PAIR_WINDOW_ITEMS) if places else ():
            if item in places:
                yield _ListClick(owner, places.pop(item), item, before)


def _subtract_clicks(
    features: Tensor, clicks: Iterator[_ListClick], weights: ContextWeights, counters: Counters
) -> None:
    """Subtract, in place, the counts of the lists' own clicks from the features of the clicked items."""
    added = np.zeros(features.shape, dtype=np.float32)  # before the logarithm
    popularity = len(counters.events) / np.maximum(counters.popularity.sum(axis=1), 1.0)
    pairs = [
        (COUNTER_FEATURES.index(feature), counters.matrices[name], context, window)
        for feature, name, context, window in (
            ("transition", "transition", weights.last, 1),
            ("skip_transition", "skip_transition", weights.near, SKIP_WINDOW_ITEMS),
            ("session_cooccurrence", "cooccurrence", weights.session, PAIR_WINDOW_ITEMS),
            ("history_cooccurrence", "cooccurrence", weights.history, PAIR_WINDOW_ITEMS),
            ("neighbour_cooccurrence", "neighbour", weights.near, NEIGHBOUR_WINDOW_ITEMS),
        )
    ]
    for click in clicks:
        if counters.events[click.item] == 1:
            features[COUNTER_FEATURES.index("never_sold"), click.place] = 1.0
        added[0:2, click.place] += popularity
        for feature, counts, context, window in pairs:
            before = np.array(click.before[:window], dtype=np.int64)
            share = context[[click.owner]].toarray()[0, before] / (counts.row_sums[before] + SMOOTHING_EVENTS)
            added[feature, click.place] += PROBABILITY_SCALE * share.sum()
    touched = torch.from_numpy(added > 0)
    lower = (features.expm1() - torch.from_numpy(added)).clamp(min=0)
    total = max(float(counters.popularity[1].sum()), 1.0)
    lift = COUNTER_FEATURES.index("session_lift")
    lower[lift] = torch.from_numpy(session_lift(lower.numpy(), len(counters.events), total))
    touched[lift] = touched.any(dim=0)
    features[touched] = lower.log1p()[touched]
