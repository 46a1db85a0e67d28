"""A copy of a learner's weights as they were published, to compare candidates with and to roll back to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peft_adapters.learning.learner import Learner
from peft_adapters.learning.state_dicts import join_tensors
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.modalities import contribution_norm
from peft_adapters.ranking.ranker import ROLES, Ranker
from peft_adapters.ranking.second_stage import SecondStage

_HEADS = ("ranker/heads", "lists/outcomes/click/slow/weights", "lists/outcomes/purchase/slow/weights")
_RESIDUALS = tuple(f"ranker/residuals/{role}" for role in ROLES)
_HALVED = ("ranker/text", *_RESIDUALS)  # the large tensors are kept in half precision


@dataclass(slots=True)
class PublishedWeights:
    """Weights and optimiser states of a learner at the time of a publication.

    Attributes:
        weights: learned tensors by path; the large ones in half precision.
        events_learned: number of events learnt by then.
        calibration: calibration at that time; None before any event was judged.
    """

    weights: dict[str, Tensor]
    events_learned: int
    calibration: float | None

    @classmethod
    def of(cls, learner: Learner, calibration: float | None) -> PublishedWeights:
        """Copy the learner's present weights."""
        weights = {
            name: value.half() if name in _HALVED else value.clone()
            for name, value in learner.learned_tensors().items()
        }
        return cls(weights, learner.events_learned, calibration)

    def grow(self, text: Tensor) -> None:
        """Add the items that came since, with zero residuals.

        Args:
            text: [items, dim] present text vectors of all items.
        """
        missing = len(text) - len(self.weights["ranker/text"])
        if missing > 0:
            zeros = torch.zeros(missing, text.shape[1], dtype=torch.half)
            self.weights["ranker/text"] = torch.cat([self.weights["ranker/text"], text[-missing:].half()])
            for name in _RESIDUALS:
                self.weights[name] = torch.cat([self.weights[name], zeros])

    def ranker_of(self, rows: IntArray, ranker: Ranker) -> Ranker:
        """Return a ranker of some items with these weights and the present counts, which are not learnt.

        Args:
            rows: [items] catalogue rows of the items.
            ranker: the learner's present ranker.
        """
        counters = Counters()
        counters.events = ranker.counters.events[rows]
        index = torch.from_numpy(rows)
        return replace(
            ranker,
            heads=self.weights["ranker/heads"],
            global_preference=self.weights["ranker/global_preference"],
            text=self.weights["ranker/text"].index_select(0, index).float(),
            residuals={role: self.weights[f"ranker/residuals/{role}"].index_select(0, index).float() for role in ROLES},
            counters=counters,
            second_stage=SecondStage.from_tensors(self._group("ranker/second_stage/")),
        )

    def _group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose paths have a prefix, without it; none in weights of an earlier release."""
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}

    def roll_back(self, learner: Learner) -> None:
        """Restore these weights into the learner."""
        weights = {name: value.float() if name in _HALVED else value for name, value in self.weights.items()}
        learner.roll_back(join_tensors(weights))


def group_norms(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each group of a learner's weights.

    Groups are all heads, the networks of the second stage if there are any, all LoRA matrices, the residuals that were
    moved (their mean), and what projections add.

    Args:
        weights: learned tensors by path.
    """
    rows = torch.cat([torch.linalg.vector_norm(weights[f"ranker/residuals/{role}"].float(), dim=-1) for role in ROLES])
    moved = rows[rows != 0]
    lora = [value for name, value in weights.items() if name.startswith("lora/served/")]
    added = [
        float(contribution_norm(value)) for name, value in weights.items() if name.startswith("projections/served/")
    ]
    networks = [value.flatten() for name, value in weights.items() if name.startswith("ranker/second_stage/w")]
    network = float(torch.linalg.vector_norm(torch.cat(networks))) if networks else 0.0
    return ({"second_stage": network} if network else {}) | {
        "heads": float(torch.linalg.vector_norm(torch.cat([weights[name].float() for name in _HEADS]))),
        "residuals": float(moved.mean()) if len(moved) else 0.0,
        "projections": math.hypot(*added),
        "lora": math.sqrt(sum(float(value.float().square().sum()) for value in lora)),
    }
