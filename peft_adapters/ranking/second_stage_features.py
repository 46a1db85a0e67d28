"""Inputs that only the second stage uses: too costly for the whole catalogue, computed for a few hundred candidates.

They are named in `settings.SECOND_STAGE_GROUPS`. The items that stand for a context in most of them are the newest 20
of the session or, before its first event, of the shopper's history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from peft_adapters.ranking import counter_kernels
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.item_facts import ItemFacts
from peft_adapters.ranking.second_stage_inputs import NEWEST_ITEMS, second_stage_inputs
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import SECOND_STAGE_FEATURES, SECOND_STAGE_GROUPS

if TYPE_CHECKING:
    from peft_adapters.ranking.counters import Counters
    from peft_adapters.ranking.session_neighbours import SessionNeighbours

MATRICES = ("transition", "cooccurrence", "followed")
PER_ITEM = ("events", "repeated", "popularity_now", "events_since_last", "events_since_first")
_STARTS = np.cumsum([0, *(len(names) for names in SECOND_STAGE_GROUPS.values())])[:-1]


@dataclass(frozen=True, slots=True)
class VectorTable:
    """Unit vectors of some items in one role.

    Attributes:
        vectors: [rows, dim] vectors.
        rows: sorted catalogue rows of the items; None if they are all items.
    """

    vectors: FloatArray
    rows: IntArray | None = None

    def places(self, rows: IntArray) -> IntArray:
        """Return the places of catalogue rows in the table, of the same shape; that of a row of -1 means nothing."""
        return rows if self.rows is None else np.searchsorted(self.rows, rows)


@dataclass(frozen=True, slots=True)
class SecondStageFeatures:
    """Second-stage features over counters, past sessions, facts and text vectors; its arrays never change.

    Attributes:
        counts: for each of `MATRICES`, the arrays of both parts of its counts.
        per_item: for each of `PER_ITEM`, the counts [items].
        facts: prices and words of the items.
        text: [items, dim] unit text vectors.
        neighbours: what `SessionNeighbours.kernel` returns.
    """

    counts: tuple[object, ...]
    per_item: tuple[FloatArray, ...]
    facts: ItemFacts
    text: FloatArray
    neighbours: tuple[object, ...]

    @classmethod
    def of(cls, counters: Counters, neighbours: SessionNeighbours, facts: ItemFacts, text: FloatArray) -> Self:
        """Return the features of a snapshot.

        Args:
            counters: counters to take a snapshot of.
            neighbours: past sessions, not copied.
            facts: prices and words of the items.
            text: [items, dim] unit text vectors, not copied.
        """
        known, items = len(facts.words), len(counters.events)
        return cls(
            tuple(
                tuple((part.indptr, part.indices, part.data) for part in counters.matrices[name].parts())
                for name in MATRICES
            ),
            tuple(getattr(counters, name) for name in PER_ITEM),
            facts if known >= items else facts.of_rows(np.where(np.arange(items) < known, np.arange(items), -1)),
            text,
            neighbours.kernel(items),
        )

    def features(self, contexts: Contexts, rows: IntArray, *, query: VectorTable, candidate: VectorTable) -> FloatArray:
        """Return features [contexts, SECOND_STAGE_FEATURES, candidates].

        Args:
            contexts: recent items of the shoppers.
            rows: [contexts, candidates] rows of each context's candidates, distinct in a context.
            query: vectors in the query role, at least those of the rows of `newest_rows`.
            candidate: vectors in the candidate role, at least those of `rows`.

        Raises:
            IndexError: a row is beyond the counted items; compiled loops do not check bounds.
        """
        largest, items = counter_kernels.max_row(contexts.items, contexts.passed, rows.ravel()), len(self.per_item[0])
        if largest >= items:
            raise IndexError(f"rows must be below {items}, the number of counted items, got {largest}")
        out = np.zeros((len(rows), len(SECOND_STAGE_FEATURES), rows.shape[1]), dtype=np.float32)
        second_stage_inputs(
            (contexts.items, contexts.ages, contexts.elapsed_ms, query.places(contexts.items)),
            self.counts,
            self.per_item,
            tuple(self.facts),
            (query.vectors, candidate.vectors, self.text, candidate.places(rows)),
            self.neighbours,
            rows,
            _STARTS,
            out,
        )
        return out


def newest_rows(contexts: Contexts) -> IntArray:
    """Return the sorted distinct rows of the items that vectors are compared with."""
    newest = contexts.items[:, :NEWEST_ITEMS]
    return np.unique(newest[newest >= 0])
