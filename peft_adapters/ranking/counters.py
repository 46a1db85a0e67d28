"""Streaming counters: popularity at two half-lives, directed transitions, windowed co-occurrence, click-through.

They are what collaborative filtering needs from a stream. Counts are whole numbers, or those halved a few times, so
adding a published delta to a parent's counts gives exactly the counts of the learner that published it. Everything is
vectorised over a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

HALF_LIVES_EVENTS = (1_000.0, 20_000.0)
PAIR_WINDOW_ITEMS = 20  # a new event is paired with this many before it in its session
SKIP_WINDOW_ITEMS = 5  # the newest of them also count as directed skip transitions
NEIGHBOUR_WINDOW_ITEMS = 3  # and these as neighbours, whichever came first
PER_ITEM = ("events", "shown", "clicked", "bought")
MATRICES = ("transition", "skip_transition", "cooccurrence", "neighbour")

_MERGE_RATIO = 0.1  # the recent part is folded into the main one at this share of it: amortised constant cost an entry
_MERGE_ENTRIES = 1_000


class SparseCounts:
    """A growing square matrix of counts: a large sorted part, and a small recent one folded into it now and then."""

    def __init__(self, size: int = 0) -> None:
        self._main = _empty(size)
        self._recent = _empty(size)
        self._row_sums = np.zeros(size, dtype=np.float32)

    def grow(self, size: int) -> None:
        """Make room for `size` items."""
        if size > len(self._row_sums):
            self._main, self._recent = self._main.copy(), self._recent.copy()  # a resize is in place
            self._main.resize(size, size)
            self._recent.resize(size, size)
            self._row_sums = np.pad(self._row_sums, (0, size - len(self._row_sums)))

    def add(self, rows: IntArray, columns: IntArray, counts: FloatArray) -> None:
        """Add counts at (row, column); repeated places add up. Earlier copies of this object keep their counts."""
        size = len(self._row_sums)
        self._recent = self._recent + _csr(counts, rows, columns, size)
        self._row_sums = self._row_sums + np.bincount(rows, counts, size).astype(np.float32)
        if self._recent.nnz > _MERGE_ENTRIES + _MERGE_RATIO * self._main.nnz:
            self._main, self._recent = self._main + self._recent, _empty(size)

    def scale(self, factor: float) -> None:
        """Multiply all counts. Earlier copies of this object keep theirs."""
        self._main, self._recent = self._main * np.float32(factor), self._recent * np.float32(factor)
        self._row_sums = self._row_sums * np.float32(factor)

    @property
    def row_sums(self) -> FloatArray:
        """Counts of whole rows, [size]."""
        return self._row_sums

    def probability(self, weights: sparse.csr_array, *, smoothing: float) -> sparse.csr_array:
        """Conditional probabilities of rows, weighted and summed. [contexts, items].

        Row `c` is `sum_j weights[c, j] * counts[j] / (row_sums[j] + smoothing)`.
        """
        scaled = weights.copy()
        scaled.data = scaled.data / (self._row_sums[weights.indices] + np.float32(smoothing))
        return scaled @ self._main + scaled @ self._recent

    def parts(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """The large part and the recent one: their sum is what was counted. Neither is ever changed in place."""
        return self._main, self._recent

    def copy(self) -> SparseCounts:
        """A copy that shares what neither of the two will change in place."""
        other = SparseCounts()
        other._main, other._recent, other._row_sums = self._main, self._recent, self._row_sums
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Both parts exactly as they are, so that a resumed learner sums in the same order."""
        return {
            f"{part}.{name}": value
            for part, matrix in (("main", self._main), ("recent", self._recent))
            for name, value in _triples(matrix.tocoo()).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor], size: int) -> None:
        """Put back what `state_dict` gave."""
        self._main, self._recent = (
            _csr(state[f"{part}.count"].numpy(), state[f"{part}.row"].numpy(), state[f"{part}.column"].numpy(), size)
            for part in ("main", "recent")
        )
        self._row_sums = np.asarray((self._main + self._recent).sum(axis=1), dtype=np.float32).ravel()

    def triples(self) -> dict[str, Tensor]:
        """All counts as `row`, `column` (int32) and `count` (float32), sorted."""
        return _triples((self._main + self._recent).tocoo())


class Counters:
    """All streaming counters of one scenario.

    Attributes:
        popularity: [half-lives, items] events of each item, halved every `HALF_LIVES_EVENTS`.
        events: [items] events of each item since the beginning.
        shown: [items] how often each item was in a list whose clicks are known.
        clicked: [items] how often it was clicked there.
        bought: [items] how often it was bought there.
        matrices: the sparse counts by name.
        rewritten: something happened since `mark_published` that no delta can say.
    """

    def __init__(self) -> None:
        self.rewritten = False
        self.popularity = np.zeros((len(HALF_LIVES_EVENTS), 0), dtype=np.float32)
        self.events, self.shown, self.clicked, self.bought = (np.zeros(0, dtype=np.float32) for _ in PER_ITEM)
        self.matrices = {name: SparseCounts() for name in MATRICES}
        self._unpublished: dict[str, list[sparse.csr_array]] = {name: [] for name in MATRICES}

    def grow(self, size: int) -> None:
        """Make room for `size` items."""
        missing = size - len(self.events)
        if missing > 0:
            self.popularity = np.pad(self.popularity, ((0, 0), (0, missing)))
            for name in PER_ITEM:
                setattr(self, name, np.pad(getattr(self, name), (0, missing)))
            for matrix in self.matrices.values():
                matrix.grow(size)

    def update(self, items: IntArray, before: list[list[int]]) -> None:
        """Count a batch.

        Args:
            items: [events] rows of the items.
            before: for each event the rows before it in its session, newest first.
        """
        decay = np.array([0.5 ** (len(items) / half_life) for half_life in HALF_LIVES_EVENTS], dtype=np.float32)
        counts = np.bincount(items, minlength=len(self.events)).astype(np.float32)
        self.popularity = self.popularity * decay[:, None] + counts
        self.events = self.events + counts
        lags = np.array([lag for rows in before for lag in range(len(rows))], dtype=np.int64)
        earlier = np.array([row for rows in before for row in rows], dtype=np.int64)
        later = np.repeat(items, [len(rows) for rows in before])
        self._add("transition", earlier[lags == 0], later[lags == 0])
        near = lags < SKIP_WINDOW_ITEMS
        self._add("skip_transition", earlier[near], later[near])
        close = lags < NEIGHBOUR_WINDOW_ITEMS
        self._add_both_ways("neighbour", earlier[close], later[close])
        self._add_both_ways("cooccurrence", earlier, later)

    def update_shown(
        self,
        items: IntArray,
        clicked: npt.NDArray[np.bool_],
        bought: npt.NDArray[np.bool_],
        *,
        is_correction: npt.NDArray[np.bool_],
    ) -> None:
        """Count what was shown.

        Args:
            items: [shown] rows of the items.
            clicked: [shown] whether each was clicked.
            bought: [shown] whether each was bought.
            is_correction: [shown] its showing was counted before, and only its click or purchase is new.
        """
        size = len(self.events)
        self.shown = self.shown + np.bincount(items[~is_correction], minlength=size).astype(np.float32)
        self.clicked = self.clicked + np.bincount(items[clicked], minlength=size).astype(np.float32)
        self.bought = self.bought + np.bincount(items[bought], minlength=size).astype(np.float32)

    def decay(self, halvings: int) -> None:
        """Make all that was counted weigh less beside what comes: shares stay, and yield sooner.

        By powers of 2, which leave sums of counts exact.
        """
        factor = np.float32(0.5**halvings)
        self.popularity = self.popularity * factor
        for name in PER_ITEM:
            setattr(self, name, getattr(self, name) * factor)
        for matrix in self.matrices.values():
            matrix.scale(float(factor))
        self.rewritten = True

    def _add_both_ways(self, name: str, rows: IntArray, columns: IntArray) -> None:
        self._add(name, np.concatenate([rows, columns]), np.concatenate([columns, rows]))

    def _add(self, name: str, rows: IntArray, columns: IntArray) -> None:
        counts = np.ones(len(rows), dtype=np.float32)
        self.matrices[name].add(rows, columns, counts)
        self._unpublished[name].append(
            sparse.csr_array((counts, (rows, columns)), shape=(len(self.events), len(self.events)))
        )

    def copy(self) -> Counters:
        """A copy to apply a delta to, beside the one that is being served."""
        other = Counters()
        other.popularity = self.popularity
        for name in PER_ITEM:
            setattr(other, name, getattr(self, name))
        other.matrices = {name: matrix.copy() for name, matrix in self.matrices.items()}
        return other

    # ---- what travels in a bundle

    def full(self) -> dict[str, Tensor]:
        """Everything, for a bundle that stands alone."""
        return self._published({name: matrix.triples() for name, matrix in self.matrices.items()})

    def delta(self) -> dict[str, Tensor]:
        """What was counted since `mark_published`."""
        size = len(self.events)
        triples = {}
        for name, parts in self._unpublished.items():
            total = _empty(size)
            for part in parts:
                part = part.copy()
                part.resize(size, size)  # counted when there were fewer items
                total = total + part
            triples[name] = _triples(total.tocoo())
        return self._published(triples)

    def mark_published(self) -> None:
        """Begin a new delta."""
        self.rewritten = False
        self._unpublished = {name: [] for name in MATRICES}

    def apply(self, published: Mapping[str, Tensor]) -> None:
        """Take over what `full` (onto an empty object) or `delta` (onto its parent) gave."""
        self.grow(published["events"].shape[0])
        self._take_dense(published)
        for name, matrix in self.matrices.items():
            data, (rows, columns) = _coo({key: published[f"{name}.{key}"] for key in ("row", "column", "count")})
            matrix.add(rows, columns, data)

    def _published(self, triples: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return self._dense() | {f"{name}.{key}": value for name, part in triples.items() for key, value in part.items()}

    def _dense(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(getattr(self, name)) for name in ("popularity", *PER_ITEM)}

    def _take_dense(self, tensors: Mapping[str, Tensor]) -> None:
        self.popularity = tensors["popularity"].numpy().copy()
        for name in PER_ITEM:
            setattr(self, name, tensors[name].numpy().copy())

    # ---- what a checkpoint keeps

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, bit for bit."""
        return self._dense() | {
            f"{name}.{key}": value
            for name, matrix in self.matrices.items()
            for key, value in matrix.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave; what a delta holds begins anew, so the next bundle has to be a full one."""
        self._take_dense(state)
        for name, matrix in self.matrices.items():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            matrix.load_state_dict(own, len(self.events))
        self.mark_published()


def _empty(size: int) -> Any:
    return sparse.csr_array((size, size), dtype=np.float32)


def _csr(counts: FloatArray, rows: Any, columns: Any, size: int) -> Any:
    places = (rows.astype(np.int32), columns.astype(np.int32))  # a third less memory than with the usual 64 bits
    return sparse.csr_array((counts, places), shape=(size, size))


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
