"""Optimisers with their learning-rate schedules: of heads, residual rows and LoRA.

Each keeps its state in plain tensors, so that a checkpoint restores it bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from peft_adapters.settings import LoraOptimiserKind

_CLIP_NORM = 5.0  # of the heads' gradient
_LORA_CLIP_NORM = 1.0
_HEADS_DECAY_BATCHES = 20  # the heads' rate falls with the root of time beyond this
_HEADS_FLOOR = 0.1  # share of the starting rate it never falls below, so that drift is followed
_ROW_BETA = 0.999
_EPSILON = 1e-8
_SETTLED_BATCHES = 10_000  # after so many the rate of the heads is at its floor


def all_finite(loss: Tensor, gradients: Iterable[Tensor | None]) -> bool:
    """Return whether a loss and its gradients are finite; gradients that are None do not count.

    Their sums are tested, which takes one pass: a sum is finite only if all of its terms are.
    """
    return all(math.isfinite(float(value.detach().sum())) for value in (loss, *gradients) if value is not None)


class HeadsOptimiser:
    """Adam (Kingma & Ba 2015) on the heads, in place, at a rate that starts high and decays.

    The rate is `learning_rate * max(0.1, 1 / sqrt(1 + batches / 20))`.

    Args:
        heads: weights that are moved in place.
        learning_rate: rate of the first batch.
    """

    def __init__(self, heads: Tensor, *, learning_rate: float) -> None:
        self._heads = heads
        self._learning_rate = learning_rate
        self._optimiser = torch.optim.Adam([heads], lr=learning_rate)
        self._batches = 0

    def step(self, gradient: Tensor, *, scale: float = 1.0) -> None:
        """Take one clipped step; `scale` multiplies its length."""
        self._heads.grad = gradient * min(1.0, _CLIP_NORM / (float(gradient.norm()) + _EPSILON))
        decay = max(_HEADS_FLOOR, (1 + self._batches / _HEADS_DECAY_BATCHES) ** -0.5)
        self._optimiser.param_groups[0]["lr"] = self._learning_rate * decay * scale
        self._optimiser.step()
        self._batches += 1

    def restart(self) -> None:
        """Restart the rate schedule at its high start."""
        self._batches = 0

    def settle(self) -> None:
        """Discard the moments and take the rate that a long-running learner has."""
        self.load_state_dict({"batches": torch.tensor(_SETTLED_BATCHES)})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as tensors."""
        return _adam_state(self._optimiser) | {"batches": torch.tensor(self._batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state."""
        self._batches = int(state["batches"])
        _restore_adam(self._optimiser, state)


class RowOptimiser:
    """Row-wise Adam without momentum: one second moment a row, updated only when the row occurs.

    This is the partial row-wise Adam of embedding tables (FBGEMM) without its first moment: as good here
    (docs/decisions/0001), and a checkpoint holds one number per row instead of two vectors.

    Args:
        learning_rate: rate of every step.
    """

    def __init__(self, *, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._moment = torch.zeros(0)
        self._steps = 0

    def grow(self, size: int) -> None:
        """Make room for `size` rows."""
        self._moment = torch.cat([self._moment, torch.zeros(max(0, size - len(self._moment)))])

    def step(self, table: Tensor, rows: Tensor, gradient: Tensor, *, scale: float = 1.0) -> None:
        """Take one step in place.

        Args:
            table: [items, dim] parameters.
            rows: [rows] distinct rows that are moved.
            gradient: [rows, dim] gradient of these rows.
            scale: factor on the length of the step.
        """
        self._steps += 1
        mean_square = torch.linalg.vecdot(gradient, gradient) / gradient.shape[1]
        moment = _ROW_BETA * self._moment[rows] + (1 - _ROW_BETA) * mean_square
        self._moment[rows] = moment
        spread = (moment / (1 - _ROW_BETA**self._steps)).sqrt() + _EPSILON
        table.index_add_(0, rows, gradient * (-self._learning_rate * scale / spread)[:, None])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as tensors."""
        return {"moment": self._moment.clone(), "steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state."""
        self._moment, self._steps = state["moment"].clone(), int(state["steps"])


class LoraOptimiser:
    """AdamW (Loshchilov & Hutter 2019) or plain SGD on the LoRA weights.

    Args:
        parameters: the LoRA weights; their gradients accumulate between steps.
        learning_rate: rate after the warm-up.
        weight_decay: decoupled from the gradient: a step subtracts `learning_rate * weight_decay` of each weight.
        kind: `adamw` or `sgd`.
        warmup_steps: number of steps over which the rate rises linearly to the full one.
        accumulate: number of gradients whose mean one step follows.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        kind: LoraOptimiserKind = "adamw",
        warmup_steps: int = 0,
        accumulate: int = 1,
    ) -> None:
        self._parameters, self._learning_rate = list(parameters), learning_rate
        self._optimiser = _LORA_KINDS[kind](self._parameters, lr=learning_rate, weight_decay=weight_decay)
        self._warmup_steps, self._accumulate = warmup_steps, accumulate
        self._steps = 0
        self._waiting = 0  # gradients accumulated on the parameters

    def step(self, *, scale: float = 1.0) -> None:
        """Count a gradient, and step once enough are accumulated.

        The step follows the clipped mean of the gradients since the last one. It is skipped if that is not finite.

        Args:
            scale: factor on the length of the step.
        """
        self._waiting += 1
        if self._waiting < self._accumulate:
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad /= self._waiting
        self._steps += 1
        warm = min(1.0, self._steps / max(1, self._warmup_steps))
        self._optimiser.param_groups[0]["lr"] = self._learning_rate * scale * warm
        if torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, _LORA_CLIP_NORM)):
            self._optimiser.step()
        self._optimiser.zero_grad()
        self._waiting = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as tensors, accumulated gradients included."""
        waiting = {
            f"gradient.{index}": parameter.grad.clone()
            for index, parameter in enumerate(self._parameters)
            if parameter.grad is not None
        }
        counts = {"steps": torch.tensor(self._steps), "waiting": torch.tensor(self._waiting)}
        return _adam_state(self._optimiser) | counts | waiting

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state."""
        _restore_adam(self._optimiser, state)
        self._steps, self._waiting = int(state["steps"]), int(state["waiting"])
        for index, parameter in enumerate(self._parameters):
            gradient = state.get(f"gradient.{index}")
            parameter.grad = None if gradient is None else gradient.clone()


# SGD has no momentum and no state. Its weight decay is part of the gradient, which equals AdamW's here.
_LORA_KINDS: dict[LoraOptimiserKind, type[torch.optim.AdamW] | type[torch.optim.SGD]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

_ADAM_KEYS = ("step", "exp_avg", "exp_avg_sq")


def _adam_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = optimiser.param_groups[0]["params"]
    return {
        f"{key}.{index}": optimiser.state[parameter][key].clone()
        for index, parameter in enumerate(parameters)
        if parameter in optimiser.state
        for key in _ADAM_KEYS
    }


def _restore_adam(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    optimiser.state.clear()
    for index, parameter in enumerate(optimiser.param_groups[0]["params"]):
        if f"step.{index}" in state:
            optimiser.state[parameter] = {key: state[f"{key}.{index}"].clone() for key in _ADAM_KEYS}
