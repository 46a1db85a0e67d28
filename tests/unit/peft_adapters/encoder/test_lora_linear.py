"""The linear layer computes what PEFT's layer computes, and its hand-written gradients are correct."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from peft_adapters.encoder.lora_linear import Dropout, LoraLinear


def peft_linear(*, bias: bool) -> PeftLinear:
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias).requires_grad_(False)
    layer = PeftLinear(base, "default", config=LoraConfig(r=2, lora_alpha=8), r=2, lora_alpha=8)
    with torch.no_grad():
        for parameter in layer.parameters():
            nn.init.normal_(parameter)  # PEFT initialises LoRA's matrix B to zero
    return layer.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6), (2, 3, 4, 6)])
def test_equals_peft_apart_and_merged(bias: bool, shape: tuple[int, ...]) -> None:
    theirs = peft_linear(bias=bias)
    ours, states = LoraLinear(theirs), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours(states), theirs(states))
    merged = ours.merged()
    torch.testing.assert_close(merged.double()(states), theirs(states), atol=1e-6, rtol=1e-6)
    assert merged.weight.data_ptr() != ours.weight.data_ptr()


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(bias: bool) -> None:
    layer = LoraLinear(peft_linear(bias=bias))
    states = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)

    def run(states: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = torch.func.functional_call(layer, {"down": down, "up": up}, (states,))
        return given

    weights = (layer.down.detach().clone().requires_grad_(), layer.up.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, (states, *weights))


def test_states_that_nothing_below_learns_from_get_no_gradient() -> None:
    layer = LoraLinear(peft_linear(bias=True))
    layer(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is None
    assert layer.down.grad is not None
    assert layer.up.grad is not None


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    dropped = Dropout(0.3, seed=0)(torch.ones(100, 100))
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_is_of_what_lora_sees_alone(bias: bool) -> None:
    layer = LoraLinear(peft_linear(bias=bias))
    states = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    layer.dropout = Dropout(0.5, seed=1)
    out = layer(states)
    dropped = Dropout(0.5, seed=1)(states)
    expected = nn.functional.linear(states, layer.weight, layer.bias) + dropped @ layer.down.t() @ layer.up.t() * 4
    torch.testing.assert_close(out, expected)
    weights = [states, layer.down, layer.up]
    for own, reference in zip(
        torch.autograd.grad(out.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(own, reference)
