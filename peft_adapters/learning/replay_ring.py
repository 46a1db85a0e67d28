"""A ring of the newest groups of candidates, for replay: an event with its candidates, or a list with its items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class ReplayRing:
    """The newest groups, as tensors by name whose first dimension runs over the groups.

    Args:
        capacity: largest number of groups kept; the oldest ones make room for new ones.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Discard all groups."""
        self._tensors: dict[str, Tensor] = {}
        self._added = self._taken = 0

    def __len__(self) -> int:
        """Return the number of groups kept."""
        return min(self._added, self._capacity)

    def add(self, groups: Mapping[str, Tensor]) -> None:
        """Add groups.

        Args:
            groups: tensors [groups, ...] by name, of the same names, types and shapes at every call.
        """
        count = len(next(iter(groups.values())))
        if not self._tensors:
            self._tensors = {
                name: torch.zeros(self._capacity, *value.shape[1:], dtype=value.dtype) for name, value in groups.items()
            }
        places = torch.arange(self._added, self._added + count)[-self._capacity :] % self._capacity
        for name, value in groups.items():
            self._tensors[name][places] = value[-self._capacity :]
        self._added += count

    @property
    def waiting(self) -> int:
        """The number of groups added since `take_new`."""
        return self._added - self._taken

    def take_new(self) -> dict[str, Tensor]:
        """Return the kept groups that were added since the last call, [groups, ...] by name."""
        places = torch.arange(max(self._taken, self._added - self._capacity), self._added) % self._capacity
        self._taken = self._added
        return {name: value[places] for name, value in self._tensors.items()}

    def draw(self, generator: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Return groups drawn at random with replacement, [count, ...] by name."""
        places = torch.from_numpy(generator.integers(len(self), size=count))
        return {name: value[places] for name, value in self._tensors.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept groups and the numbers added and taken, as tensors; nothing before the first."""
        if not self._added:
            return {}
        kept = {name: value[: len(self)].clone() for name, value in self._tensors.items()}
        return kept | {"added": torch.tensor(self._added), "taken": torch.tensor(self._taken)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state, of a ring of the same capacity."""
        self.clear()
        if not state:
            return
        for name, value in state.items():
            if name not in ("added", "taken"):
                self._tensors[name] = torch.zeros(self._capacity, *value.shape[1:], dtype=value.dtype)
                self._tensors[name][: len(value)] = value
        self._added, self._taken = int(state["added"]), int(state["taken"])
