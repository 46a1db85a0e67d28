"""Each optimiser against its definition, and against itself interrupted and restored."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_adapters.optimisers import HeadsOptimiser, LoraOptimiser, RowOptimiser


def gradients(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_heads_follow_adam_at_a_falling_rate() -> None:
    heads = torch.zeros(3)
    optimiser = HeadsOptimiser(heads, learning_rate=0.1)
    reference = nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([reference], lr=0.1)
    for step, gradient in enumerate(gradients(50, 3)):
        optimiser.step(gradient)
        adam.param_groups[0]["lr"] = 0.1 * (1 + step / 20) ** -0.5
        reference.grad = gradient
        adam.step()
    torch.testing.assert_close(heads, reference.detach())


def test_heads_never_stand_still() -> None:
    """Drift has to be followed after any number of batches: the rate has a floor."""
    heads = torch.zeros(1)
    optimiser = HeadsOptimiser(heads, learning_rate=0.1)
    optimiser.load_state_dict(optimiser.state_dict() | {"batches": torch.tensor(10**9)})
    optimiser.step(torch.ones(1))
    assert heads.item() == pytest.approx(-0.01, rel=1e-3)


def test_heads_gradient_is_clipped() -> None:
    """A scaled gradient would not show in Adam's first step; it does in the second moment."""
    optimiser = HeadsOptimiser(torch.zeros(2), learning_rate=0.1)
    optimiser.step(torch.tensor([3_000.0, 4_000.0]))
    torch.testing.assert_close(optimiser.state_dict()["exp_avg.0"], 0.1 * torch.tensor([3.0, 4.0]))


def test_rows_move_against_the_gradient_by_the_rate() -> None:
    table = torch.zeros(4, 2)
    optimiser = RowOptimiser(learning_rate=0.01)
    optimiser.grow(4)
    optimiser.step(table, torch.tensor([2]), torch.tensor([[3.0, -3.0]]))
    torch.testing.assert_close(table, torch.tensor([[0.0, 0], [0, 0], [-0.01, 0.01], [0, 0]]))


def test_a_row_without_gradient_does_not_move() -> None:
    table = torch.ones(2, 2)
    optimiser = RowOptimiser(learning_rate=0.01)
    optimiser.grow(2)
    optimiser.step(table, torch.tensor([0, 1]), torch.zeros(2, 2))
    assert torch.equal(table, torch.ones(2, 2))


def test_new_rows_do_not_disturb_old_ones() -> None:
    grown, whole = torch.zeros(2, 3), torch.zeros(5, 3)
    first, second = RowOptimiser(learning_rate=0.01), RowOptimiser(learning_rate=0.01)
    first.grow(2)
    second.grow(5)
    for index, gradient in enumerate(gradients(6, 2, 3)):
        rows = torch.tensor([0, 1]) if index < 3 else torch.tensor([1, 4])
        if index == 3:
            first.grow(5)
            first.grow(1)
            grown = torch.cat([grown, torch.zeros(3, 3)])
        first.step(grown, rows, gradient)
        second.step(whole, rows, gradient)
    assert torch.equal(grown, whole)


def test_lora_step_is_clipped_adamw_over_summed_gradients() -> None:
    parameter, reference = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = LoraOptimiser([parameter], learning_rate=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([reference], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for gradient in gradients(4, 2, 2):
            (parameter * gradient).sum().backward()  # type: ignore[no-untyped-call]
        reference.grad = torch.stack(gradients(4, 2, 2)).sum(dim=0)
        reference.grad /= max(1.0, reference.grad.norm().item())
        optimiser.step()
        adamw.step()
        assert parameter.grad is None
    torch.testing.assert_close(parameter, reference)


def lora_steps(given: list[Tensor], **options: Any) -> list[list[float]]:
    """Where a weight that begins at (1, -1) stands after each gradient."""
    parameter = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimiser = LoraOptimiser([parameter], **{"learning_rate": 0.1, "weight_decay": 0.0} | options)
    stood = []
    for gradient in given:
        (parameter * gradient).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        stood.append(parameter.tolist())
    return stood


def test_sgd_steps_by_hand() -> None:
    """Clipped at norm 1; of each weight a tenth of the rate decays."""
    first, second = lora_steps([torch.tensor([0.5, 0.0]), torch.tensor([3.0, -4.0])], kind="sgd", weight_decay=0.1)
    assert first == pytest.approx([1 - 0.05 - 0.01, -1 + 0.01])
    assert second == pytest.approx([0.94 - 0.06 - 0.0094, -0.99 + 0.08 + 0.0099])


def test_the_rate_warms_up_in_equal_parts_and_stays() -> None:
    stood = lora_steps([torch.tensor([0.5, 0.0])] * 6, kind="sgd", warmup_steps=4)
    lengths = [before[0] - after[0] for before, after in pairwise([[1.0, -1.0], *stood])]
    assert lengths == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05], rel=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_two_gradients_accumulated_make_the_step_of_their_mean(kind: str) -> None:
    halves = gradients(6, 2)
    means = [(one + other) / 2 for one, other in zip(halves[::2], halves[1::2], strict=True)]
    stood = lora_steps(halves, kind=kind, accumulate=2, warmup_steps=2)
    assert stood[::2] == [[1.0, -1.0], *stood[1:-1:2]]  # nothing moves at the first of two
    for accumulated, expected in zip(stood[1::2], lora_steps(means, kind=kind, warmup_steps=2), strict=True):
        assert accumulated == pytest.approx(expected)


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_heads_resume_exactly(stop: int) -> None:
    heads = torch.zeros(3)
    unkilled = HeadsOptimiser(heads, learning_rate=0.1)
    steps = gradients(14, 3)
    for gradient in steps[:stop]:
        unkilled.step(gradient)
    resumed_heads = heads.clone()
    resumed = HeadsOptimiser(resumed_heads, learning_rate=0.1)
    resumed.load_state_dict(copied(unkilled.state_dict()))
    for gradient in steps[stop:]:
        unkilled.step(gradient)
        resumed.step(gradient)
    assert torch.equal(resumed_heads, heads)


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_rows_resume_exactly(stop: int) -> None:
    table = torch.zeros(4, 3)
    unkilled, resumed = RowOptimiser(learning_rate=0.1), RowOptimiser(learning_rate=0.1)
    unkilled.grow(4)
    rows, steps = torch.tensor([0, 2]), gradients(14, 2, 3)
    for gradient in steps[:stop]:
        unkilled.step(table, rows, gradient)
    resumed.load_state_dict(copied(unkilled.state_dict()))
    resumed_table = table.clone()
    for gradient in steps[stop:]:
        unkilled.step(table, rows, gradient)
        resumed.step(resumed_table, rows, gradient)
    assert torch.equal(resumed_table, table)


@pytest.mark.parametrize("stop", [0, 1, 6])
@pytest.mark.parametrize("options", [{}, {"kind": "sgd"}, {"accumulate": 4, "warmup_steps": 3}])
def test_lora_resumes_exactly(stop: int, options: dict[str, Any]) -> None:
    options |= {"learning_rate": 0.01, "weight_decay": 0.1}
    unkilled_weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
    unkilled = LoraOptimiser(unkilled_weights, **options)

    def batch(weights: list[nn.Parameter], optimiser: LoraOptimiser, number: int) -> None:
        parts = [(weight * (number + 1) * gradients(1, *weight.shape)[0]).sum() for weight in weights]
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    for number in range(stop):
        batch(unkilled_weights, unkilled, number)
    resumed_weights = [nn.Parameter(weight.detach().clone()) for weight in unkilled_weights]
    resumed = LoraOptimiser(resumed_weights, **options)
    resumed.load_state_dict(copied(unkilled.state_dict()))
    for number in range(stop, 16):
        batch(unkilled_weights, unkilled, number)
        batch(resumed_weights, resumed, number)
    assert all(torch.equal(a, b) for a, b in zip(unkilled_weights, resumed_weights, strict=True))


def test_a_state_is_a_copy() -> None:
    heads = torch.zeros(3)
    optimiser = HeadsOptimiser(heads, learning_rate=0.1)
    optimiser.step(torch.ones(3))
    state = optimiser.state_dict()
    before = copied(state)
    optimiser.step(torch.ones(3))
    assert all(torch.equal(before[name], state[name]) for name in state)
