"""The gate a candidate adapter passes before anyone hears of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class GateSettings(BaseModel):
    """How far a candidate's weights may go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_head_weight: float = Field(default=100.0, gt=0, description="largest absolute weight of a head")
    max_residual_norm: float = Field(default=20.0, gt=0, description="largest norm of an item's residual; texts have 1")
    max_lora_norm: float = Field(default=100.0, gt=0, description="largest norm of one LoRA matrix")


def judge_candidate(groups: Mapping[str, Mapping[str, Tensor]], settings: GateSettings) -> dict[str, Any]:
    """Decide on a candidate's tensors: `{"decision": "passed" | "refused", "reasons": [...]}`.

    A candidate passes when all its numbers are finite and no norm is beyond its bound.
    """
    reasons = [
        f"{group}.{name} has {int((~torch.isfinite(value)).sum())} values that are not finite"
        for group, tensors in groups.items()
        for name, value in tensors.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    bounds: tuple[tuple[str, float, Callable[[Tensor], Tensor]], ...] = (
        ("heads", settings.max_head_weight, torch.abs),
        ("residuals", settings.max_residual_norm, _row_norms),
        ("adapter_model", settings.max_lora_norm, torch.linalg.vector_norm),
    )
    for group, limit, measure in bounds:
        for name, value in groups[group].items():
            largest = float(measure(value.float()).max()) if value.is_floating_point() and value.numel() else 0.0
            if largest > limit:
                reasons.append(f"{group}.{name} reaches {largest:.3g}, the bound is {limit:g}")
    return {"decision": "refused" if reasons else "passed", "reasons": reasons}


def _row_norms(value: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norms
