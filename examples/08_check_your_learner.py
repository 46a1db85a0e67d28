"""Check that a learner of your own keeps Headwater's contract, before you put it behind a shop.

python examples/08_check_your_learner.py
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import headwater


class PopularityLearner:
    """Rank items by how often they were clicked or bought."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.counts: Counter[str] = Counter()

    def add_items(self, items: Sequence[tuple[str, str]]) -> None:
        """Add items."""
        self.items += [item_id for item_id, _ in items if item_id not in self.items]

    def observe(self, examples: Sequence[Any]) -> list[str]:
        """Return the items of a micro-batch."""
        if unknown := {event.item_id for event in examples} - set(self.items):
            raise KeyError(f"items {sorted(unknown)} were never added; call add_items first")
        return [event.item_id for event in examples]

    def judge(self, batch: list[str]) -> torch.Tensor:
        """Return the counts as scores [events, items]."""
        return torch.tensor([[float(self.counts[item_id]) for item_id in self.items]]).repeat(len(batch), 1)

    def learn(self, batch: list[str]) -> float:
        """Count the items; there is no loss to speak of."""
        self.counts.update(batch)
        return 0.0

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""
        return {"items": list(self.items), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.items, self.counts = list(state["items"]), Counter(state["counts"])


headwater.check_learner(PopularityLearner)
print("the learner keeps the contract")
