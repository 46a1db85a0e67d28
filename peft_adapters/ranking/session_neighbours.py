"""Sessions similar to a shopper's, and scores of candidates by what they hold: a streaming session-kNN.

STAN (Garg et al. 2019, "Sequence and time aware neighborhood for session-based recommendations") scores an item by the
past sessions that share items with the current one. A shared item weighs more the later it came in the current session,
a session weighs more the newer it is, and an item of it the nearer it is to the newest shared item:

    score(i) = sum over sessions n with i of similarity(n) * exp(-age(n) / 60 days) * exp(-|position(i) - shared| / 8)
    similarity(n) = sum over shared items of exp(-position from the newest / 5) / sqrt(length * length(n))

The 50,000 newest sessions are kept in a ring, without ids of shoppers; what falls out is forgotten. A session with more
items than a slot holds goes on in a new slot. Chains of entries, newest session first, lead from an item to its
sessions; they follow from the sessions, so that neither checkpoints nor bundles hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peft_adapters.errors import ModelValueError
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.session_neighbour_kernels import (
    CONTEXT_ITEMS,
    MS_PER_DAY,
    SCORES,
    append_item,
    link_all,
    neighbour_scores,
)
from peft_adapters.ranking.shoppers import Contexts

SLOTS = 50_000  # newest sessions kept
SLOT_ITEMS = 64  # items of a session in one slot: at 8 distances farther, an item weighs 1 / e of the nearer one

_CONTEXT_DECAY, _DISTANCE_DECAY, _AFTER_DECAY = 5.0, 8.0, 3.0  # positions at which a weight falls to 1 / e
_AGE_SCALE_MS = 60 * MS_PER_DAY
_FIRST_CAPACITY = 1_024
_NO_SESSION = 0  # key of a slot whose session no event can continue


class SessionNeighbours:
    """The newest sessions of a stream, and scores of candidates from those that are similar to a context.

    Args:
        slots: number of sessions to keep.
        slot_items: largest number of items of a session in one slot.

    Attributes:
        started: number of sessions that were given a slot so far.
    """

    def __init__(self, *, slots: int = SLOTS, slot_items: int = SLOT_ITEMS) -> None:
        self._slots = slots
        self.started = 0
        self._heads = np.full(0, -1, dtype=np.int32)
        self._items, self._older = (np.zeros((0, slot_items), dtype=np.int32) for _ in range(2))
        self._lengths = np.zeros(0, dtype=np.int32)
        self._last_ms, self._keys = (np.zeros(0, dtype=np.int64) for _ in range(2))
        self._changed = np.zeros(0, dtype=np.bool_)  # slots changed since `mark_published`
        self._open: dict[int, int] = {}  # newest slot of each session, by key
        places = np.arange(slot_items, dtype=np.float32)
        self._decays = (
            np.exp(-np.arange(CONTEXT_ITEMS, dtype=np.float32) / np.float32(_CONTEXT_DECAY)),
            np.exp(-places / np.float32(_DISTANCE_DECAY)),
            np.exp(-(places - 1) / np.float32(_AFTER_DECAY)),
            _AGE_SCALE_MS,
        )

    def __len__(self) -> int:
        """Return the number of slots that hold a session."""
        return int((self._lengths > 0).sum())

    def grow(self, size: int) -> None:
        """Extend to `size` items."""
        self._heads = np.pad(self._heads, (0, max(0, size - len(self._heads))), constant_values=-1)

    def update(self, items: IntArray, sessions: IntArray, ts_ms: IntArray) -> None:
        """Add the events of a micro-batch to their sessions.

        Args:
            items: [events] catalogue rows of the events' items.
            sessions: [events] key of each event's session, as `Shoppers.session_key_of` returns it.
            ts_ms: [events] time of each event, epoch milliseconds.
        """
        for row, key, event_ms in zip(items.tolist(), sessions.tolist(), ts_ms.tolist(), strict=True):
            slot = self._open.get(key)
            if slot is None or self._lengths[slot] == self._items.shape[1]:
                slot = self._start(key)
            append_item(slot, row, event_ms, self._table())
            self._changed[slot] = True

    def _start(self, key: int) -> int:
        """Return a slot for a session that has none, or whose slot is full."""
        slot = self.started % self._slots
        self.started += 1
        self._reserve(slot + 1)
        replaced = int(self._keys[slot])
        if self._open.get(replaced) == slot:
            del self._open[replaced]
        self._lengths[slot], self._last_ms[slot], self._keys[slot] = 0, 0, key
        self._open[key] = slot
        return slot

    def forget(self, sessions: Sequence[int]) -> None:
        """Clear the slots of sessions.

        Args:
            sessions: keys of a shopper's sessions, as `Shoppers.session_keys_of` returns them.
        """
        self._clear(np.flatnonzero(np.isin(self._keys, np.array(sessions, dtype=np.int64))))

    def forget_before(self, started: int) -> None:
        """Clear the slots of all sessions that started before `started` had this value."""
        self._clear(np.arange(max(0, self.started - self._slots), min(started, self.started)) % self._slots)

    def _clear(self, slots: npt.NDArray[np.int64]) -> None:
        cleared = set(slots.tolist())
        self._open = {key: slot for key, slot in self._open.items() if slot not in cleared}
        for array in (self._lengths, self._items, self._last_ms, self._keys):
            array[slots] = 0
        self._changed[slots] = True
        link_all(self._table())

    # ---- scores

    def scores(
        self, contexts: Contexts, now_ms: IntArray, columns: IntArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the scores of candidates by the sessions similar to each context.

        Similar sessions are found by the current session's items; without any, by the shopper's newest items. A session
        that is a run of the current one is left out, because it is most likely the current one itself.

        Args:
            contexts: recent items of the shoppers.
            now_ms: [contexts] time of each context, epoch milliseconds.
            columns: [columns] rows of the candidates; None is the whole catalogue.

        Returns:
            scores [3, contexts, columns]: STAN's, of items that came after the shared item alone, and without the
            position in the similar session; totals [contexts] of the similarities, by which scores are shares.
        """
        columns = np.arange(len(self._heads)) if columns is None else columns
        out = np.zeros((SCORES, len(contexts), len(columns)), dtype=np.float32)
        totals = np.zeros(len(contexts), dtype=np.float32)
        neighbour_scores(contexts.items, contexts.ages, now_ms, columns, self._table(), self._decays, out, totals)
        return out, totals

    def kernel(self, size: int) -> tuple[Any, ...]:
        """Return the sessions in the form that `neighbour_features` takes: table, decays, time of the newest event.

        Args:
            size: number of items that there are at least.
        """
        self.grow(size)
        return self._table(), self._decays, int(self._last_ms.max(initial=0))

    def copy(self) -> SessionNeighbours:
        """Return a copy to score with, for example to apply a delta to it; it does not change with this object."""
        copy = SessionNeighbours(slots=self._slots, slot_items=self._items.shape[1])
        copy.started, copy._open = self.started, self._open.copy()
        for name in ("_heads", "_items", "_older", "_lengths", "_last_ms", "_keys", "_changed"):
            setattr(copy, name, getattr(self, name).copy())
        return copy

    # ---- tensors of a bundle

    def full(self) -> dict[str, Tensor]:
        """Return all sessions without their keys, for a full bundle."""
        return self._sessions(np.arange(min(self.started, self._slots)))

    def delta(self) -> dict[str, Tensor]:
        """Return the sessions that changed since `mark_published`, for a delta bundle."""
        return self._sessions(np.flatnonzero(self._changed))

    def mark_published(self) -> None:
        """Start a new delta."""
        self._changed[:] = False

    def apply(self, published: Mapping[str, Tensor]) -> None:
        """Apply the tensors of `full` to an empty object, or those of `delta` to the sessions of its parent.

        Raises:
            ModelValueError: the tensors do not fit together, or name an item beyond those of `grow`.
        """
        self._require_fit(published)
        slots, lengths = published["slots"].numpy(), published["lengths"].numpy()
        self.started = int(published["started"])
        self._reserve(int(slots.max(initial=-1)) + 1)
        self._lengths[slots], self._last_ms[slots] = lengths, published["last_ms"].numpy()
        filled = np.arange(self._items.shape[1]) < lengths[:, None]  # [slots, width]
        rows = np.zeros(filled.shape, dtype=np.int32)
        rows[filled] = published["items"].numpy()
        self._items[slots] = rows
        link_all(self._table())

    def _require_fit(self, published: Mapping[str, Tensor]) -> None:
        """Check tensors before compiled loops, which do not check bounds, read them."""
        slots, lengths, items = published["slots"], published["lengths"], published["items"]
        if published["started"].shape != (1,) or not slots.shape == lengths.shape == published["last_ms"].shape:
            raise ModelValueError("session_neighbours must have one number `started`, and one of each kind a slot")
        limits = {"slots": self._slots, "lengths": self._items.shape[1] + 1, "items": len(self._heads)}
        for name, limit in limits.items():
            if bool((published[name] >= limit).any()):
                raise ModelValueError(f"session_neighbours.{name} must be below {limit}")
        if items.shape != (int(lengths.sum()),):
            raise ModelValueError(
                f"session_neighbours.items must be as many as `lengths` say, got {tuple(items.shape)}"
            )

    def _sessions(self, slots: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        lengths = self._lengths[slots]
        filled = np.arange(self._items.shape[1]) < lengths[:, None]
        return {
            "started": torch.tensor([self.started], dtype=torch.int32),
            "slots": torch.from_numpy(slots.astype(np.int32)),
            "lengths": torch.from_numpy(lengths),
            "last_ms": torch.from_numpy(self._last_ms[slots]),
            "items": torch.from_numpy(self._items[slots][filled]),
        }

    # ---- state of a checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        """Return all sessions with their keys."""
        state = self.full()
        return state | {"keys": torch.from_numpy(self._keys[state["slots"].numpy()])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_dict`, or nothing, no session. The next bundle must be a full one."""
        self.started = 0
        self._heads[:] = -1
        self._lengths[:], self._last_ms[:], self._keys[:] = 0, 0, _NO_SESSION
        self._open = {}
        if not state:
            return
        self.apply(state)
        self._keys[state["slots"].numpy()] = state["keys"].numpy()
        oldest = max(0, self.started - self._slots)
        in_order = (number % self._slots for number in range(oldest, self.started))
        self._open = {int(self._keys[slot]): slot for slot in in_order if self._keys[slot] != _NO_SESSION}
        self.mark_published()

    # ---- arrays

    def _table(self) -> tuple[Any, ...]:
        arrays = (self._items, self._older, self._lengths, self._last_ms, self._heads)
        return (*arrays, self._slots, self.started - 1)

    def _reserve(self, slots: int) -> None:
        """Make room for slots; the arrays double, so that a small shop's stay small."""
        capacity = len(self._lengths)
        if slots <= capacity:
            return
        missing = min(self._slots, max(slots, 2 * capacity, _FIRST_CAPACITY)) - capacity
        for name in ("_items", "_older"):
            setattr(self, name, np.pad(getattr(self, name), ((0, missing), (0, 0))))
        for name in ("_lengths", "_last_ms", "_keys", "_changed"):
            setattr(self, name, np.pad(getattr(self, name), (0, missing)))
