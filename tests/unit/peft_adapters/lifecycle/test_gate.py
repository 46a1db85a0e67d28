"""The gate: what is not finite or beyond its bounds is refused, with every reason; a normal candidate passes."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_model import random_stream, tiny_learner
from torch import Tensor

from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.lifecycle.gate_rules import judge_candidate
from peft_adapters.ranking.residual_rows import quantise_rows
from peft_adapters.settings import GateSettings, LearnerSettings


def residuals(**tables: Tensor) -> dict[str, Tensor]:
    """By role; where none is given, of two items at rest."""
    rest = {"query": torch.zeros(2, 3), "candidate": torch.zeros(2, 3)}
    return {k: v for role, own in (rest | tables).items() for k, v in quantise_rows(role, own, range(len(own))).items()}


def candidate(**groups: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of two items and three numbers each, everything at rest."""
    rest: dict[str, dict[str, Tensor]] = {
        "adapter_model": {"layer.lora_A.weight": torch.full((4, 3), 0.1), "layer.lora_B.weight": torch.zeros(3, 4)},
        "heads": {"weights": torch.ones(12)},
        "residuals": residuals(),
        "counters": {"popularity": torch.zeros(2, 2), "transition.row": torch.zeros(0, dtype=torch.int32)},
    }
    return {name: tensors | groups.get(name, {}) for name, tensors in rest.items()}


def judged(settings: GateSettings | None = None, **groups: dict[str, Tensor]) -> dict[str, Any]:
    return judge_candidate(candidate(**groups), settings or GateSettings())


PASSED = {"decision": "passed", "reasons": [], "rules": []}


@pytest.mark.parametrize("full", [True, False])
def test_a_learner_that_learns_passes(full: bool) -> None:
    learner = tiny_learner(LearnerSettings(lora_every_events=1, lora_refresh_steps=1), items=20)
    assert judge_candidate(learner.bundle_groups(full=full), GateSettings()) == PASSED
    for batch in range(4):
        learner.learn(learner.observe(random_stream(30, items=20, seed=batch)))
    assert judge_candidate(learner.bundle_groups(full=full), GateSettings()) == PASSED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("group", "name", "shape"),
    [
        ("adapter_model", "layer.lora_A.weight", (4, 3)),
        ("heads", "weights", (12,)),
        ("heads", "purchase", (14,)),
        ("counters", "popularity", (2, 2)),
    ],
)
def test_one_value_that_is_not_finite_is_enough(group: str, name: str, shape: tuple[int, ...], value: float) -> None:
    tensor = torch.zeros(shape)
    tensor.view(-1)[-1] = value
    verdict = judge_candidate(candidate(**{group: {name: tensor}}), GateSettings())
    assert verdict["decision"] == "refused"
    assert verdict["reasons"][0] == f"{group}.{name} has 1 values that are not finite"


@pytest.mark.parametrize(
    ("group", "name", "tensor", "reason"),
    [
        ("heads", "weights", torch.tensor([0.0, -101.0]), "heads.weights reaches 101, the bound is 100"),
        ("adapter_model", "layer.lora_B.weight", torch.full((100, 100), 1.01), "reaches 101, the bound is 100"),
    ],
)
def test_a_norm_beyond_its_bound_is_refused(group: str, name: str, tensor: Tensor, reason: str) -> None:
    verdict = judge_candidate(candidate(**{group: {name: tensor}}), GateSettings())
    assert verdict["decision"] == "refused"
    assert len(verdict["reasons"]) == 1
    assert reason in verdict["reasons"][0]


@pytest.mark.parametrize(
    ("group", "name", "tensor"),
    [
        ("heads", "weights", torch.full((12,), -100.0)),
        ("adapter_model", "layer.lora_B.weight", torch.full((100, 100), 1.0)),
    ],
)
def test_at_its_bound_or_out_of_its_reach_it_passes(group: str, name: str, tensor: Tensor) -> None:
    assert judge_candidate(candidate(**{group: {name: tensor}}), GateSettings()) == PASSED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["query", "candidate"])
def test_a_residual_that_is_not_finite_is_refused(role: str, value: float) -> None:
    verdict = judged(residuals=residuals(**{role: torch.tensor([[0.1, 0.2], [0.0, value]])}))
    assert verdict["reasons"] == [f"residuals.{role} has 1 values that are not finite"]


@pytest.mark.parametrize(
    ("query", "reasons"),
    [
        (torch.tensor([[0.0, 0.0], [15.0, 15.0]]), ["residuals.query reaches 21.2, the bound is 20"]),
        (torch.tensor([[0.0, 19.9]] * 50), []),  # of each row, not of all together
        (torch.zeros(0, 3), []),
    ],
)
def test_residuals_have_a_bound_for_each_row(query: Tensor, reasons: list[str]) -> None:
    assert judged(residuals=residuals(query=query))["reasons"] == reasons


def test_all_reasons_are_told() -> None:
    verdict = judged(
        heads={"weights": torch.tensor([math.nan, 1.0])},
        residuals=residuals(query=torch.full((1, 4), 60.0), candidate=torch.full((1, 4), math.inf)),
    )
    assert [reason.split(" ")[0] for reason in verdict["reasons"]] == [
        *("heads.weights", "residuals.candidate"),
        "residuals.query",
    ]


def test_bounds_are_settings() -> None:
    assert judged(GateSettings(max_head_weight=0.5))["reasons"] == ["heads.weights reaches 1, the bound is 0.5"]
    with pytest.raises(ValidationError, match="max_head_weight"):
        GateSettings(max_head_weight=0)


def test_a_learner_that_stands_still_differs_from_its_live_copy_only_by_rounding() -> None:
    """Weights of the live adapter are those that are served, the global preference included, lists or no lists."""
    learner = tiny_learner(LearnerSettings(lora=False), items=20)
    for seed in range(6):
        learner.learn(learner.observe(random_stream(30, items=20, seed=seed)))
    assert float(learner.ranker.global_preference.abs().max()) > 0.01
    gate = Gate(learner, PrequentialEvaluator(), GateSettings())
    batch = learner.observe(random_stream(30, items=20, seed=9))
    gate.update(batch, learner.judge(batch))
    assert gate.evidence().loss_difference == pytest.approx(0, abs=1e-3)
