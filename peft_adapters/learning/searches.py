"""Searches as a learner sees them: what is known of each query, and a contrastive loss of queries and items.

A query nobody has typed before has no residual and no counter, so only the encoder can rank for it. The loss therefore
compares texts alone: the cosine of query and item, both under the present weights, against the items of the other
searches in the micro-batch and random ones (in-batch negatives; Henderson et al. 2017, 1705.00652).

Heads and networks would learn the queries that they have seen by heart too: which items these queries' shoppers choose,
whatever they type. So an event moves them as far as it can still teach something.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.ranker import GATE_EVENTS

KEPT_PAIRS = 32_768  # of a query and an item
HELD_OUT = 16  # one query in so many is not learnt, so that there are always some that LoRA can be judged on
_RANDOM_NEGATIVES = 256  # items in a step, beside those of its searches
_LEAST_WEIGHT = 1e-6  # a micro-batch of events without weight has no loss
_SHARPNESS = 20.0  # factor on cosines in the softmax

Vectors = Callable[[IntArray], Tensor]


@dataclass(frozen=True, slots=True)
class Searches:
    """The events of a micro-batch that came from searches, as far as LoRA learns them.

    Attributes:
        queries: distinct queries, sorted.
        query: [events] index of each event's query.
        items: [events] rows of the items.
        weight: [events] weight in the loss: the event's own, times what it can still teach.
        known: by query, rows of the items that are known to fit it.
        evidence: what all events together can still teach, in events that would each be new.
        novelty: [events of the micro-batch] what each of them can still teach, 0 to 1; 1 without a query.
    """

    queries: list[str]
    query: IntArray
    items: IntArray
    weight: Tensor
    known: list[IntArray]
    evidence: float
    novelty: Tensor

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.items)


class SearchLog:
    """The newest pairs of query and item that events had, with their counts.

    An event teaches less the more is known: at the query's event `n`, counted from 0, `5 / (n + 5)`, the share that the
    text has in an item's vector after `n` events; at the pair's event `m`, `1 / (m + 1)` of that. So a shop with few
    queries, which LoRA would learn by heart, gives little evidence, and a pair that is repeated next to none.

    Queries are kept as digests of 64 bits, so that checkpoints hold no text that a shopper typed.

    Args:
        holds_out: whether LoRA leaves out the searches of one query in 16, always the same ones.

    Attributes:
        evidence: sum of what all events so far could teach LoRA, in events.
    """

    def __init__(self, *, holds_out: bool = False) -> None:
        self._holds_out = holds_out
        self.evidence = 0.0
        self._pairs: OrderedDict[tuple[int, int], int] = OrderedDict()  # (digest, row) to events, least recent first
        self._rows: dict[int, dict[int, None]] = {}  # digest to rows
        self._events: dict[int, int] = {}  # digest to events

    def __len__(self) -> int:
        """Return the number of pairs kept."""
        return len(self._pairs)

    def knows(self, query: str) -> bool:
        """Return whether LoRA has learnt an event of a query that is kept."""
        return self._learns(query) and _digest(query) in self._events

    def add(self, batch: Batch) -> Searches | None:
        """Record the searches of a micro-batch, and return those that LoRA learns; None if there are none at all."""
        searched = {place: query for place, query in enumerate(batch.queries or ()) if query is not None}
        if not searched:
            return None
        novelty = torch.ones(len(batch))
        for place, query in searched.items():
            novelty[place] = self._record(_digest(query), int(batch.items[place]))
        places = [place for place, query in searched.items() if self._learns(query)]
        queries, items, teaches = [searched[place] for place in places], batch.items[places], novelty[places]
        distinct = sorted(set(queries))
        index = {query: place for place, query in enumerate(distinct)}
        evidence = float(teaches.double().sum())
        self.evidence += evidence
        return Searches(
            queries=distinct,
            query=np.array([index[query] for query in queries], dtype=np.int64),
            items=items,
            weight=batch.weight[places] * teaches,
            known=[np.array(sorted(self._rows.get(_digest(query), {})), dtype=np.int64) for query in distinct],
            evidence=evidence,
            novelty=novelty,
        )

    def _learns(self, query: str) -> bool:
        return not self._holds_out or _digest(query) % HELD_OUT != 0

    def _record(self, digest: int, row: int) -> float:
        """Record an event, and return what it can teach, 0 to 1."""
        pair = (digest, row)
        of_query, of_pair = self._events.get(digest, 0), self._pairs.get(pair, 0)
        self._pairs[pair] = of_pair + 1
        self._pairs.move_to_end(pair)
        self._events[digest] = of_query + 1
        self._rows.setdefault(digest, {})[row] = None
        if len(self._pairs) > KEPT_PAIRS:
            self._drop(*self._pairs.popitem(last=False))
        return GATE_EVENTS / (of_query + GATE_EVENTS) / (of_pair + 1)

    def _drop(self, pair: tuple[int, int], events: int) -> None:
        digest, row = pair
        self._events[digest] -= events
        del self._rows[digest][row]
        if not self._rows[digest]:
            del self._rows[digest], self._events[digest]

    def clear(self) -> None:
        """Forget all pairs; the evidence stays, because the weights have learnt from it."""
        self._pairs.clear()
        self._rows.clear()
        self._events.clear()

    def state_dict(self) -> StateDict:
        """Return the whole state as tensors."""
        return {
            "pairs": torch.tensor(list(self._pairs), dtype=torch.int64).view(-1, 2),
            "events": torch.tensor(list(self._pairs.values()), dtype=torch.int32),
            "evidence": torch.tensor(self.evidence, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state; the empty one of an earlier release is that of no search."""
        self.clear()
        self.evidence = float(state["evidence"]) if state else 0.0
        pairs, counts = (state[name].tolist() if state else [] for name in ("pairs", "events"))
        for (digest, row), events in zip(pairs, counts, strict=True):
            self._pairs[digest, row] = events
            self._rows.setdefault(digest, {})[row] = None
            self._events[digest] = self._events.get(digest, 0) + events


def _digest(query: str) -> int:
    """Return 64 bits of a query without its case, as a signed integer."""
    return int.from_bytes(hashlib.blake2b(query.casefold().encode(), digest_size=8).digest(), signed=True)


def search_loss(
    searches: Searches, query_vectors: Tensor, item_vectors: Vectors, *, items: int, generator: np.random.Generator
) -> Tensor:
    """Return the weighted mean cross-entropy of the searches' items, nats.

    Items known to fit a query are no negatives of it.

    Args:
        searches: the events to learn from.
        query_vectors: [queries, dim] unit vectors of the queries, with gradients.
        item_vectors: function that returns unit text vectors [rows, dim] of sorted rows, with gradients.
        items: number of items in the catalogue.
        generator: draws the random negatives.
    """
    drawn = generator.choice(items, size=min(_RANDOM_NEGATIVES, items), replace=False)
    candidates = np.union1d(searches.items, drawn)
    logits = _SHARPNESS * (query_vectors @ item_vectors(candidates).T)[torch.from_numpy(searches.query)]
    targets = np.searchsorted(candidates, searches.items)
    known = np.stack([np.isin(candidates, rows) for rows in searches.known])[searches.query]  # [events, candidates]
    known[np.arange(len(targets)), targets] = False
    logits = logits.masked_fill(torch.from_numpy(known), -torch.inf)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    return (searches.weight * losses).sum() / searches.weight.sum().clamp(min=_LEAST_WEIGHT)
