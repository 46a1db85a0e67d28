"""Streaming counters: popularity, directed transitions, windowed co-occurrence with its order, click-through, repeats.

Counts are whole numbers, possibly halved a few times, so sums are exact: a parent's counts plus a published delta equal
the counts of the learner that published it. All updates are vectorised over a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from peft_adapters.earlier_formats import counters_of_0_2
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.registry.tensor_rules import HALVED, MATRICES, PER_ITEM

HALF_LIVES_EVENTS = (1_000.0, 20_000.0)
NOW_HALF_LIFE_EVENTS = 100.0
PAIR_WINDOW_ITEMS = 20  # earlier items of the session that a new event is paired with
SKIP_WINDOW_ITEMS = 5  # newest of them that also count as directed skip transitions
NEIGHBOUR_WINDOW_ITEMS = 3  # newest of them that also count as neighbours, without direction

_MERGE_RATIO = 0.1  # size of the recent part, over the main one, at which they are merged: amortised constant cost
_MERGE_ENTRIES = 1_000


class SparseCounts:
    """A growing square matrix of counts, the sum of a large main part and a small recent part that is merged into it.

    Args:
        size: number of rows and columns.
    """

    def __init__(self, size: int = 0) -> None:
        self._main = _empty(size)
        self._recent = _empty(size)
        self._row_sums = np.zeros(size, dtype=np.float32)

    def grow(self, size: int) -> None:
        """Extend to `size` rows and columns."""
        if size > len(self._row_sums):
            self._main, self._recent = self._main.copy(), self._recent.copy()  # resize works in place
            self._main.resize(size, size)
            self._recent.resize(size, size)
            self._row_sums = np.pad(self._row_sums, (0, size - len(self._row_sums)))

    def add(self, rows: IntArray, columns: IntArray, counts: FloatArray) -> None:
        """Add counts; repeated (row, column) pairs add up, and earlier copies of this object do not change.

        Args:
            rows: [entries] row of each count.
            columns: [entries] column of each count.
            counts: [entries] counts to add.
        """
        size = len(self._row_sums)
        self._recent = self._recent + _csr(counts, rows, columns, size)
        self._row_sums = self._row_sums + np.bincount(rows, counts, size).astype(np.float32)
        if self._recent.nnz > _MERGE_ENTRIES + _MERGE_RATIO * self._main.nnz:
            self._main, self._recent = self._main + self._recent, _empty(size)

    def scale(self, factor: float) -> None:
        """Multiply all counts by a factor; earlier copies of this object do not change."""
        self._main, self._recent = self._main * np.float32(factor), self._recent * np.float32(factor)
        self._row_sums = self._row_sums * np.float32(factor)

    @property
    def row_sums(self) -> FloatArray:
        """Row sums [size]."""
        return self._row_sums

    def probability(self, weights: sparse.csr_array, *, smoothing: float) -> sparse.csr_array:
        """Return weighted sums of the rows' conditional probabilities, [contexts, items].

        Row `c` is `sum_j weights[c, j] * counts[j] / (row_sums[j] + smoothing)`.

        Args:
            weights: sparse [contexts, items] weight of each item in each context.
            smoothing: count added to each row sum.
        """
        scaled = weights.copy()
        scaled.data = scaled.data / (self._row_sums[weights.indices] + np.float32(smoothing))
        return scaled @ self._main + scaled @ self._recent

    def parts(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Return the main and the recent part [items, items], which sum to the counts and never change in place."""
        return self._main, self._recent

    def copy(self) -> SparseCounts:
        """Return a copy; it shares the arrays, which neither object changes in place."""
        copy = SparseCounts()
        copy._main, copy._recent, copy._row_sums = self._main, self._recent, self._row_sums
        return copy

    def state_dict(self) -> dict[str, Tensor]:
        """Return both parts unmerged, so that a resumed learner sums in the same order."""
        return {
            f"{part}.{name}": value
            for part, matrix in (("main", self._main), ("recent", self._recent))
            for name, value in _triples(matrix.tocoo()).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor], size: int) -> None:
        """Load the result of `state_dict` for `size` items."""
        self._main, self._recent = (
            _csr(state[f"{part}.count"].numpy(), state[f"{part}.row"].numpy(), state[f"{part}.column"].numpy(), size)
            for part in ("main", "recent")
        )
        self._row_sums = np.asarray((self._main + self._recent).sum(axis=1), dtype=np.float32).ravel()

    def triples(self) -> dict[str, Tensor]:
        """Return all counts as `row`, `column` (int32) and `count` (float32), [entries] each, sorted."""
        return _triples((self._main + self._recent).tocoo())


class Counters:
    """All streaming counters of one scenario.

    Attributes:
        popularity: [half-lives, items] events of each item, halved every `HALF_LIVES_EVENTS` events.
        events: [items] events of each item since the start.
        shown: [items] impressions of each item in lists whose clicks are known.
        clicked: [items] clicks of each item in those lists.
        bought: [items] purchases of each item in those lists.
        repeated: [items] events of each item by shoppers who had it in an earlier session.
        popularity_now: [items] events of each item, halved every `NOW_HALF_LIFE_EVENTS` events.
        events_since_first: [items] events of all items from each item's first event on; 0 before it.
        events_since_last: [items] events of all items from each item's newest event on; 0 before its first.
        matrices: sparse counts of item pairs, by name: those of `MATRICES`, and `cooccurrence`, which is `followed` in
            both directions.
        rewritten: all counts changed since `mark_published`, so that a delta cannot represent them.
    """

    def __init__(self) -> None:
        self.rewritten = False
        self.popularity = np.zeros((len(HALF_LIVES_EVENTS), 0), dtype=np.float32)
        nothing: FloatArray = np.zeros(0, dtype=np.float32)
        self.events = self.shown = self.clicked = self.bought = self.repeated = self.popularity_now = nothing
        self.events_since_first = self.events_since_last = nothing
        self.matrices = {name: SparseCounts() for name in (*MATRICES, "cooccurrence")}
        self._unpublished: dict[str, list[sparse.csr_array]] = {name: [] for name in MATRICES}

    def grow(self, size: int) -> None:
        """Extend to `size` items with zero counts."""
        missing = size - len(self.events)
        if missing > 0:
            self.popularity = np.pad(self.popularity, ((0, 0), (0, missing)))
            for name in PER_ITEM:
                setattr(self, name, np.pad(getattr(self, name), (0, missing)))
            for matrix in self.matrices.values():
                matrix.grow(size)

    def update(self, items: IntArray, before: list[list[int]], is_repeat: npt.NDArray[np.bool_] | None = None) -> None:
        """Count the events of a micro-batch.

        Args:
            items: [events] catalogue rows of the events' items.
            before: for each event, the rows of earlier items in its session, newest first.
            is_repeat: [events] whether the shopper had the item in an earlier session; None if no event is one.
        """
        self._update_items(items, np.zeros(len(items), dtype=np.bool_) if is_repeat is None else is_repeat)
        lags = np.array([lag for rows in before for lag in range(len(rows))], dtype=np.int64)
        earlier = np.array([row for rows in before for row in rows], dtype=np.int64)
        later = np.repeat(items, [len(rows) for rows in before])
        self._add("transition", earlier[lags == 0], later[lags == 0])
        near = lags < SKIP_WINDOW_ITEMS
        self._add("skip_transition", earlier[near], later[near])
        close = lags < NEIGHBOUR_WINDOW_ITEMS
        self._add("neighbour", *_both_ways(earlier[close], later[close]))
        self._add("followed", earlier, later)

    def _update_items(self, items: IntArray, is_repeat: npt.NDArray[np.bool_]) -> None:
        """Count what belongs to one item; arguments as in `update`."""
        size = len(self.events)
        decay = np.array([0.5 ** (len(items) / half_life) for half_life in HALF_LIVES_EVENTS], dtype=np.float32)
        counts = np.bincount(items, minlength=size).astype(np.float32)
        self.popularity = self.popularity * decay[:, None] + counts
        self.events = self.events + counts
        self.popularity_now = self.popularity_now * np.float32(0.5 ** (len(items) / NOW_HALF_LIFE_EVENTS)) + counts
        self.repeated = self.repeated + np.bincount(items[is_repeat], minlength=size).astype(np.float32)
        until_end = np.arange(len(items), 0, -1, dtype=np.float32)  # events from each event to the end of the batch
        is_known = self.events_since_first > 0
        elapsed = is_known * np.float32(len(items))
        first, last = np.zeros(size, dtype=np.float32), self.events_since_last + elapsed
        first[items[::-1]] = until_end[::-1]  # of several events of an item, the one written last counts
        last[items] = until_end
        self.events_since_first = np.where(is_known, self.events_since_first + elapsed, first)
        self.events_since_last = last

    def update_shown(
        self,
        items: IntArray,
        clicked: npt.NDArray[np.bool_],
        bought: npt.NDArray[np.bool_],
        *,
        is_correction: npt.NDArray[np.bool_],
    ) -> None:
        """Count the impressions of lists, with their clicks and purchases.

        Args:
            items: [shown] catalogue rows of the shown items.
            clicked: [shown] True where the item was clicked.
            bought: [shown] True where the item was bought.
            is_correction: [shown] True where the impression is counted already and only the click or purchase is new.
        """
        size = len(self.events)
        self.shown = self.shown + np.bincount(items[~is_correction], minlength=size).astype(np.float32)
        self.clicked = self.clicked + np.bincount(items[clicked], minlength=size).astype(np.float32)
        self.bought = self.bought + np.bincount(items[bought], minlength=size).astype(np.float32)

    def decay(self, halvings: int) -> None:
        """Divide all counts by `2 ** halvings`: ratios stay, and new events have more weight.

        Powers of 2 keep sums of counts exact.
        """
        factor = np.float32(0.5**halvings)
        self.popularity = self.popularity * factor
        for name in HALVED:
            setattr(self, name, getattr(self, name) * factor)
        for matrix in self.matrices.values():
            matrix.scale(float(factor))
        self.rewritten = True

    def _add(self, name: str, rows: IntArray, columns: IntArray) -> None:
        """Count pairs [pairs] in a matrix, and keep them for the next delta."""
        counts = np.ones(len(rows), dtype=np.float32)
        self._add_counts(name, rows, columns, counts)
        self._unpublished[name].append(
            sparse.csr_array((counts, (rows, columns)), shape=(len(self.events), len(self.events)))
        )

    def _add_counts(self, name: str, rows: IntArray, columns: IntArray, counts: FloatArray) -> None:
        """Add counts [pairs] to a matrix, and those of `followed` to `cooccurrence` in both directions."""
        self.matrices[name].add(rows, columns, counts)
        if name == "followed":
            self.matrices["cooccurrence"].add(*_both_ways(rows, columns), np.concatenate([counts, counts]))

    def copy(self) -> Counters:
        """Return a copy without unpublished counts, for example to apply a delta to it."""
        copy = Counters()
        copy.popularity = self.popularity
        for name in PER_ITEM:
            setattr(copy, name, getattr(self, name))
        copy.matrices = {name: matrix.copy() for name, matrix in self.matrices.items()}
        return copy

    # ---- tensors of a bundle

    def full(self) -> dict[str, Tensor]:
        """Return all counts, for a full bundle."""
        return self._bundle_tensors({name: self.matrices[name].triples() for name in MATRICES})

    def delta(self) -> dict[str, Tensor]:
        """Return the pair counts since `mark_published` and all counts per item, for a delta bundle."""
        size = len(self.events)
        triples = {}
        for name, parts in self._unpublished.items():
            total = _empty(size)
            for part in parts:
                part = part.copy()
                part.resize(size, size)  # it was counted when there were fewer items
                total = total + part
            triples[name] = _triples(total.tocoo())
        return self._bundle_tensors(triples)

    def mark_published(self) -> None:
        """Start a new delta."""
        self.rewritten = False
        self._unpublished = {name: [] for name in MATRICES}

    def apply(self, published: Mapping[str, Tensor]) -> None:
        """Apply the tensors of `full` to empty counters, or those of `delta` to the counters of its parent."""
        self.grow(published["events"].shape[0])
        self._load_dense(published)
        for name in MATRICES:
            data, (rows, columns) = _coo({key: published[f"{name}.{key}"] for key in ("row", "column", "count")})
            self._add_counts(name, rows, columns, data)

    def _bundle_tensors(self, triples: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return self._dense() | {f"{name}.{key}": value for name, part in triples.items() for key, value in part.items()}

    def _dense(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(getattr(self, name)) for name in ("popularity", *PER_ITEM)}

    def _load_dense(self, tensors: Mapping[str, Tensor]) -> None:
        self.popularity = tensors["popularity"].numpy().copy()
        for name in PER_ITEM:
            setattr(self, name, tensors[name].numpy().copy())

    # ---- state of a checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        """Return all counts, bit for bit."""
        return self._dense() | {
            f"{name}.{key}": value
            for name, matrix in self.matrices.items()
            for key, value in matrix.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_dict`. Unpublished counts are lost, so the next bundle must be a full one."""
        state = counters_of_0_2(state)
        self._load_dense(state)
        for name, matrix in self.matrices.items():
            prefix = f"{name}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            matrix.load_state_dict(part, len(self.events))
        self.mark_published()


def _both_ways(rows: IntArray, columns: IntArray) -> tuple[IntArray, IntArray]:
    """Return pairs [pairs] in both directions, [2 * pairs] rows and columns."""
    return np.concatenate([rows, columns]), np.concatenate([columns, rows])


def _empty(size: int) -> Any:
    return sparse.csr_array((size, size), dtype=np.float32)


def _csr(counts: FloatArray, rows: Any, columns: Any, size: int) -> Any:
    """Return a sparse matrix [size, size] of counts [entries] at rows and columns [entries]."""
    indices = (rows.astype(np.int32), columns.astype(np.int32))  # a third less memory than with 64 bits
    return sparse.csr_array((counts, indices), shape=(size, size))


def _triples(matrix: Any) -> dict[str, Tensor]:
    return {
        "row": torch.from_numpy(matrix.row.astype(np.int32)),
        "column": torch.from_numpy(matrix.col.astype(np.int32)),
        "count": torch.from_numpy(matrix.data.astype(np.float32)),
    }


def _coo(triples: Mapping[str, Tensor]) -> tuple[FloatArray, tuple[IntArray, IntArray]]:
    return triples["count"].numpy(), (
        triples["row"].numpy().astype(np.int64),
        triples["column"].numpy().astype(np.int64),
    )
