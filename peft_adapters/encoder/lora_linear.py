"""A linear layer with LoRA on it, as PEFT computes it, in fewer passes over the activations.

PEFT writes `base(x) + lora_B(lora_A(x)) * scaling`. On CPU the wide intermediate results cost more than their
arithmetic; here they are added inside the multiplications, and thin matrices are laid out as the library likes them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn.functional import linear


class Dropout:
    """Leaves out a share of the numbers it is given, and scales the others up; drawn by its seed alone.

    Args:
        share: left out.
        seed: of all that is drawn, in the order of the calls.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._kept, self._generator = 1 - share, torch.Generator().manual_seed(seed)

    def __call__(self, states: Tensor) -> Tensor:
        """Of any shape."""
        kept = torch.empty_like(states).bernoulli_(self._kept, generator=self._generator)
        return states * kept / self._kept


class LoraLinear(nn.Module):
    """Shares the weights of PEFT's layer; its base stays frozen.

    Args:
        layer: PEFT's; one plain adapter without dropout, as `Encoder` sets it up.

    Attributes:
        dropout: what LoRA's input goes through, in a training step; None outside.
    """

    def __init__(self, layer: PeftLinear) -> None:
        super().__init__()
        (adapter,) = layer.active_adapters
        base, down, up = (
            cast(nn.Linear, part) for part in (layer.get_base_layer(), layer.lora_A[adapter], layer.lora_B[adapter])
        )
        self.weight, self.bias = base.weight, base.bias  # [out, in], [out]
        self.down, self.up = down.weight, up.weight  # [rank, in], [out, rank]
        self.scaling = float(layer.scaling[adapter])
        self.dropout: Dropout | None = None  # of what LoRA sees, in a training step

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        flat = states.flatten(0, -2)
        out = self._plain(flat) if self.dropout is None else self._dropped(flat, self.dropout)
        return out.view(*states.shape[:-1], -1)

    def _plain(self, flat: Tensor) -> Tensor:
        out: Tensor = _Lora.apply(flat, self.weight, self.bias, self.down, self.up, self.scaling)  # type: ignore[no-untyped-call]
        return out

    def _dropped(self, flat: Tensor, dropout: Dropout) -> Tensor:
        thin = linear(dropout(flat), self.down)  # [tokens, rank]
        return torch.add(linear(flat, self.weight, self.bias), linear(thin, self.up), alpha=self.scaling)

    def merged(self) -> nn.Linear:
        """An ordinary layer that does the same, on weights of its own."""
        wide, narrow = self.weight.shape
        layer = nn.Linear(narrow, wide, bias=self.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(torch.addmm(self.weight, self.up, self.down, alpha=self.scaling))
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer


class _Lora(torch.autograd.Function):
    """x W' + b + s x A' B', with gradients to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        """[tokens, in] to [tokens, out]."""
        thin = states @ down.t()  # [tokens, rank]
        out = states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())
        out.addmm_(thin, up.t(), alpha=scaling)
        ctx.save_for_backward(states, weight, down, up, thin)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Gradients to the states, if anything below learns, and to LoRA."""
        (gradient,) = gradients  # [tokens, out]
        states, weight, down, up, thin = ctx.saved_tensors
        thin_gradient = (gradient @ up.t().contiguous().t()).mul_(ctx.scaling)  # [tokens, rank]
        up_gradient = (thin.t() @ gradient).t() * ctx.scaling
        below = None
        if ctx.needs_input_grad[0]:
            below = (gradient @ weight).addmm_(thin_gradient, down)
        return below, None, None, thin_gradient.t() @ states, up_gradient, None
