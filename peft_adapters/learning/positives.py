"""Clicks and purchases as the learner sees them: contexts and features as of before each event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, Positive
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import PAIR_WINDOW_ITEMS, Counters
from peft_adapters.ranking.features import affinity_weights, context_weights
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad


def observe_positives(
    examples: Sequence[Positive],
    items: IntArray,
    *,
    counters: Counters,
    shoppers: Shoppers,
    candidates: IntArray,
    log_expected: Tensor,
    columns: IntArray | None,
    query_vector: Tensor | None,
) -> Batch:
    """Return a micro-batch as of before its events, and move the shoppers' states on.

    Args:
        examples: events of the batch, in order.
        items: [events] catalogue rows of the events' items.
        counters: counters before the batch.
        shoppers: states before the batch; updated event by event.
        candidates: [candidates] sorted rows the step is taken on, positives included.
        log_expected: [candidates] log of the probability that a candidate is in the sample.
        columns: [columns] rows to compute features for; None is the whole catalogue.
        query_vector: [events, dim] vector of each event's search query; None if no event has one.
    """
    item_count = len(counters.events)
    contexts, before, sessions, new_shopper = _walk(examples, items, shoppers)
    rows = contexts.rows()
    return Batch(
        items=items,
        weight=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        contexts=contexts,
        before=before,
        sessions=sessions,
        ts_ms=np.array([example.ts for example in examples], dtype=np.int64),
        first_of_item=counters.events[items] == 0,
        new_shopper=new_shopper,
        is_repeat=((contexts.items == items[:, None]) & (contexts.ages > 0)).any(axis=1),
        item_count=item_count,
        columns=columns,
        candidates=candidates,
        log_expected=log_expected,
        counter_features=torch.from_numpy(CounterFeatures.of(counters).features(contexts, columns)),
        affinity_weights=affinity_weights(context_weights(contexts, item_count), rows),
        context_rows=rows,
        query_vector=query_vector,
        queries=None if query_vector is None else [example.query for example in examples],
    )


def first_events(batch: Batch, count: int, *, counters: Counters, columns: IntArray | None) -> Batch:
    """Return the first events of a batch, with features of other columns.

    Args:
        batch: the observed micro-batch to shorten.
        count: number of events to keep.
        counters: counters before the batch.
        columns: [columns] rows to compute features for; None is the whole catalogue.
    """
    return events_at(batch, np.arange(min(count, len(batch))), counters=counters, columns=columns)


def events_at(batch: Batch, kept: IntArray, *, counters: Counters, columns: IntArray | None) -> Batch:
    """Return some events of a batch, with features of other columns.

    Args:
        batch: the observed micro-batch.
        kept: [kept] places of the events to keep.
        counters: counters before the batch.
        columns: [columns] rows to compute features for; None is the whole catalogue.
    """
    contexts = batch.contexts.part(kept)
    return replace(
        batch,
        items=batch.items[kept],
        weight=batch.weight[kept],
        contexts=contexts,
        before=[batch.before[place] for place in kept],
        sessions=batch.sessions[kept],
        ts_ms=batch.ts_ms[kept],
        first_of_item=batch.first_of_item[kept],
        new_shopper=batch.new_shopper[kept],
        is_repeat=batch.is_repeat[kept],
        columns=columns,
        counter_features=torch.from_numpy(CounterFeatures.of(counters).features(contexts, columns)),
        affinity_weights=batch.affinity_weights[:, kept],
        query_vector=None if batch.query_vector is None else batch.query_vector[kept],
        queries=None if batch.queries is None else [batch.queries[place] for place in kept],
    )


def _walk(
    examples: Sequence[Positive], items: IntArray, shoppers: Shoppers
) -> tuple[Contexts, list[list[int]], IntArray, np.ndarray]:
    """Return contexts, earlier items and keys of the sessions, and new shoppers, in event order; updates shoppers."""
    contexts, passed, before, sessions, new = [], [], [], [], []
    for example, item in zip(examples, items.tolist(), strict=True):
        event = (example.user_id, example.session_id, example.ts)
        new.append(example.user_id not in shoppers)
        contexts.append(shoppers.context(*event))
        passed.append(shoppers.passed_over(example.user_id, example.ts))
        before.append(shoppers.session_before(*event, limit=PAIR_WINDOW_ITEMS))
        shoppers.update(*event, item)
        sessions.append(shoppers.session_key_of(example.user_id))
    return pad(contexts, passed), before, np.array(sessions, dtype=np.int64), np.array(new)
