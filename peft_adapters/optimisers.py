"""The three schedules a model learns on: heads fast, residual rows when they occur, LoRA slowly.

Each keeps its state in plain tensors, so that a checkpoint holds it bit for bit.
"""

from __future__ import annotations

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


def all_finite(loss: Tensor, gradients: Iterable[Tensor | None]) -> bool:
    """Whether a step along gradients can be taken; of those that are None nothing moves."""
    return all(bool(torch.isfinite(value).all()) for value in (loss, *gradients) if value is not None)


class HeadsOptimiser:
    """Adam (Kingma & Ba 2015) on the heads, in place, at a rate that starts high and settles.

    The rate is `learning_rate * max(0.1, 1 / sqrt(1 + batches / 20))`.
    """

    def __init__(self, heads: Tensor, *, learning_rate: float) -> None:
        self._heads = heads
        self._learning_rate = learning_rate
        self._optimiser = torch.optim.Adam([heads], lr=learning_rate)
        self._batches = 0

    def step(self, gradient: Tensor, *, scale: float = 1.0) -> None:
        """One clipped step; `scale` is of its length."""
        self._heads.grad = gradient * min(1.0, _CLIP_NORM / (float(gradient.norm()) + _EPSILON))
        decay = max(_HEADS_FLOOR, (1 + self._batches / _HEADS_DECAY_BATCHES) ** -0.5)
        self._optimiser.param_groups[0]["lr"] = self._learning_rate * decay * scale
        self._optimiser.step()
        self._batches += 1

    def restart(self) -> None:
        """Begin the schedule again, at its high start."""
        self._batches = 0

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return _adam_state(self._optimiser) | {"batches": torch.tensor(self._batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self._batches = int(state["batches"])
        _restore_adam(self._optimiser, state)


class RowOptimiser:
    """Row-wise Adam without momentum: one second moment a row, touched only when the row occurs.

    This is the partial row-wise Adam of embedding tables (FBGEMM) with its first moment left out: as good here
    (docs/decisions/0001), and a checkpoint carries one number a row instead of two vectors.
    """

    def __init__(self, *, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._moment = torch.zeros(0)
        self._steps = 0

    def grow(self, size: int) -> None:
        """Make room for `size` rows."""
        self._moment = torch.cat([self._moment, torch.zeros(max(0, size - len(self._moment)))])

    def step(self, table: Tensor, rows: Tensor, gradient: Tensor, *, scale: float = 1.0) -> None:
        """One step, in place, on the given distinct rows of a table [items, dim]; `scale` is of its length."""
        self._steps += 1
        moment = _ROW_BETA * self._moment[rows] + (1 - _ROW_BETA) * gradient.square().mean(dim=1)
        self._moment[rows] = moment
        spread = (moment / (1 - _ROW_BETA**self._steps)).sqrt() + _EPSILON
        table[rows] -= self._learning_rate * scale * gradient / spread[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {"moment": self._moment.clone(), "steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self._moment, self._steps = state["moment"].clone(), int(state["steps"])


class LoraOptimiser:
    """AdamW (Loshchilov & Hutter 2019) or plain SGD on the LoRA weights.

    Args:
        parameters: the weights; gradients wait on them, between steps too.
        kind: which of the two.
        learning_rate: of a full step.
        weight_decay: decoupled from the gradient: a step takes off `learning_rate * weight_decay` of each weight.
        warmup_steps: over so many steps the rate rises to the full one, in equal parts.
        accumulate: gradients that a step is the mean of.
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
        self._waiting = 0  # gradients that add up on the parameters

    def step(self, *, scale: float = 1.0) -> None:
        """Take in a gradient, and step once there are enough; `scale` is of the step's length.

        A step goes along the clipped mean of the gradients since the last; they begin anew after it. One that is not
        finite is left out.
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
        """All of it as tensors, gradients that wait included."""
        waiting = {
            f"gradient.{index}": parameter.grad.clone()
            for index, parameter in enumerate(self._parameters)
            if parameter.grad is not None
        }
        counts = {"steps": torch.tensor(self._steps), "waiting": torch.tensor(self._waiting)}
        return _adam_state(self._optimiser) | counts | waiting

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        _restore_adam(self._optimiser, state)
        self._steps, self._waiting = int(state["steps"]), int(state["waiting"])
        for index, parameter in enumerate(self._parameters):
            gradient = state.get(f"gradient.{index}")
            parameter.grad = None if gradient is None else gradient.clone()


# SGD has no momentum and keeps nothing; its weight decay, a part of the gradient, is then the same as AdamW's.
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
