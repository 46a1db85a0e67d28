"""A linear layer with LoRA that computes PEFT's result in fewer passes over the activations.

PEFT computes `base(x) + lora_B(lora_A(x)) * scaling`. On CPU, writing the wide intermediate results costs more than
their arithmetic. This layer accumulates inside the matrix multiplications, and lays thin matrices out for fast BLAS.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn.functional import linear


class Dropout:
    """Inverted dropout with its own random generator.

    Args:
        rate: share of the inputs that are zeroed; the others are scaled up by `1 / (1 - rate)`.
        seed: seed of the generator, which every call advances.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self._keep_probability, self._generator = 1 - rate, torch.Generator().manual_seed(seed)

    def __call__(self, states: Tensor) -> Tensor:
        """Return activations [...] with dropout applied."""
        mask = torch.empty_like(states).bernoulli_(self._keep_probability, generator=self._generator)
        return states * mask / self._keep_probability


class LoraLinear(nn.Module):
    """A linear layer with LoRA that shares the weights of PEFT's layer; the base stays frozen.

    Args:
        layer: PEFT's layer with one plain adapter without dropout, as `Encoder` sets it up.

    Attributes:
        weight: [out, in] frozen base weight.
        bias: [out] frozen base bias, or None.
        down: [rank, in] LoRA's matrix A.
        up: [out, rank] LoRA's matrix B.
        scaling: factor of LoRA's output, `alpha / rank`.
        dropout: dropout of LoRA's input during a training step; None outside.
    """

    def __init__(self, layer: PeftLinear) -> None:
        super().__init__()
        (adapter,) = layer.active_adapters
        base, down, up = (
            cast(nn.Linear, part) for part in (layer.get_base_layer(), layer.lora_A[adapter], layer.lora_B[adapter])
        )
        self.weight, self.bias = base.weight, base.bias
        self.down, self.up = down.weight, up.weight
        self.scaling = float(layer.scaling[adapter])
        self.dropout: Dropout | None = None

    def forward(self, states: Tensor) -> Tensor:
        """Map activations [..., in] to [..., out]."""
        flat = states.flatten(0, -2)
        out = self._fused(flat) if self.dropout is None else self._with_dropout(flat, self.dropout)
        return out.view(*states.shape[:-1], -1)

    def _fused(self, flat: Tensor) -> Tensor:
        """Map activations [tokens, in] to [tokens, out] without dropout."""
        out: Tensor = _Lora.apply(flat, self.weight, self.bias, self.down, self.up, self.scaling)  # type: ignore[no-untyped-call]
        return out

    def _with_dropout(self, flat: Tensor, dropout: Dropout) -> Tensor:
        """Map activations [tokens, in] to [tokens, out] with dropout of LoRA's input."""
        low_rank = linear(dropout(flat), self.down)  # [tokens, rank]
        return torch.add(linear(flat, self.weight, self.bias), linear(low_rank, self.up), alpha=self.scaling)

    def merged(self) -> nn.Linear:
        """Return an equivalent `nn.Linear` with LoRA merged into its own copy of the weights."""
        out_features, in_features = self.weight.shape
        layer = nn.Linear(in_features, out_features, bias=self.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(torch.addmm(self.weight, self.up, self.down, alpha=self.scaling))
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer


class _Lora(torch.autograd.Function):
    """The function `x W' + b + s x A' B'` with gradients to x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        """Map activations [tokens, in] to [tokens, out]."""
        low_rank = states @ down.t()  # [tokens, rank]
        out = states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())
        out.addmm_(low_rank, up.t(), alpha=scaling)
        ctx.save_for_backward(states, weight, down, up, low_rank)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Return gradients to the LoRA matrices, and to the activations if a layer below is trained."""
        (gradient,) = gradients  # [tokens, out]
        states, weight, down, up, low_rank = ctx.saved_tensors
        low_rank_gradient = (gradient @ up.t().contiguous().t()).mul_(ctx.scaling)  # [tokens, rank]
        up_gradient = (low_rank.t() @ gradient).t() * ctx.scaling  # [out, rank]
        states_gradient = None
        if ctx.needs_input_grad[0]:
            states_gradient = (gradient @ weight).addmm_(low_rank_gradient, down)  # [tokens, in]
        return states_gradient, None, None, low_rank_gradient.t() @ states, up_gradient, None
