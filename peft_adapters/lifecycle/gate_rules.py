"""Rules of the gate for a candidate's tensors and measurements; see docs/explanation/gate-and-drift.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from peft_adapters.ranking.modalities import contribution_norm
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import row_norms
from peft_adapters.registry.tensor_rules import fault_of, is_finite, rule_of
from peft_adapters.settings import GateSettings

Rule = Literal["not_finite", "bound", "loss", "norm", "calibration"]
RULES: tuple[Rule, ...] = get_args(Rule)

_STANDARDISATION = {"mean", "scale"}  # of the second stage's inputs, which have any size
_NORM_FLOOR = 1.0  # a group below this norm may grow freely; texts have norm 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of a candidate, beside its tensors.

    Attributes:
        events: number of events judged by both the candidate and the live adapter.
        loss_difference: mean of the candidate's loss minus the live adapter's, nats per event.
        standard_error: standard error of that mean.
        calibration: mean predicted over observed probability; None before any event was judged.
        live_calibration: calibration at the time the live adapter was published.
        norms: by group of weights, the norm of the candidate and of the live adapter.
    """

    events: int
    loss_difference: float
    standard_error: float
    calibration: float | None
    live_calibration: float | None
    norms: Mapping[str, tuple[float, float]]


def judge_candidate(
    groups: Mapping[str, Mapping[str, Tensor]], settings: GateSettings, evidence: Evidence | None = None
) -> dict[str, Any]:
    """Decide on a candidate: `{"decision": "passed" | "refused", "reasons": [...], "rules": [...], ...}`.

    A candidate passes if all its numbers are finite, no norm exceeds its bound, and no rule is broken by the evidence.
    `rules` names the broken rules.

    Args:
        groups: tensors of the candidate's bundle by group.
        settings: bounds and tolerances.
        evidence: measurements of the candidate; None checks the tensors alone.
    """
    groups = {**groups, "residuals": {role: row_norms(groups["residuals"], role)[:, None] for role in ROLES}}
    broken: list[tuple[Rule, str]] = [("not_finite", reason) for reason in _not_finite(groups)]
    broken += [("bound", reason) for reason in _not_counts(groups.get("counters", {}))]
    broken += [("bound", reason) for reason in _beyond_bounds(groups, settings)]
    figures: dict[str, Any] = {}
    if evidence is not None:
        broken += _broken_by(evidence, settings)
        figures = _figures(evidence, settings)
    return {
        "decision": "refused" if broken else "passed",
        "reasons": [reason for _, reason in broken],
        "rules": sorted({rule for rule, _ in broken}),
    } | figures


def _not_finite(groups: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    return [
        f"{group}.{name} has {int((~torch.isfinite(value)).sum())} values that are not finite"
        for group, tensors in groups.items()
        for name, value in tensors.items()
        if value.is_floating_point() and not is_finite(value)
    ]


def _not_counts(counters: Mapping[str, Tensor]) -> list[str]:
    """Return faults of counters whose values are finite, but cannot be counts."""
    reasons = []
    for name, value in counters.items():
        rule = rule_of(f"counters.{name}")
        fault = fault_of(value, rule) if rule is not None and is_finite(value) else None
        if fault is not None:
            reasons.append(f"counters.{name} {fault}")
    return reasons


def _beyond_bounds(groups: Mapping[str, Mapping[str, Tensor]], settings: GateSettings) -> list[str]:
    networks = groups.get("second_stage", {})
    groups = {**groups, "second_stage": {name: networks[name] for name in networks.keys() - _STANDARDISATION}}
    bounds: tuple[tuple[str, float, Callable[[Tensor], Tensor]], ...] = (
        ("heads", settings.max_head_weight, torch.abs),
        ("second_stage", settings.max_head_weight, torch.abs),
        ("residuals", settings.max_residual_norm, _row_norms),
        ("adapter_model", settings.max_lora_norm, torch.linalg.vector_norm),
        ("projections", settings.max_projection_norm, contribution_norm),
    )
    reasons = []
    for group, limit, measure in bounds:
        for name, value in groups.get(group, {}).items():
            largest = float(measure(value.float()).max()) if value.is_floating_point() and value.numel() else 0.0
            if largest > limit:
                reasons.append(f"{group}.{name} reaches {largest:.3g}, the bound is {limit:g}")
    return reasons


def _broken_by(evidence: Evidence, settings: GateSettings) -> list[tuple[Rule, str]]:
    """Return the rules that the evidence breaks, each with its reason."""
    broken: list[tuple[Rule, str]] = []
    allowed = settings.loss_tolerance + settings.standard_errors * evidence.standard_error
    if evidence.events >= settings.min_events and evidence.loss_difference > allowed:
        broken.append(
            (
                "loss",
                f"loss is {evidence.loss_difference:.3g} above the live adapter's over {evidence.events} events, "
                f"{allowed:.3g} are allowed",
            )
        )
    for group, (norm, live) in evidence.norms.items():
        limit = settings.max_norm_ratio * max(live, _NORM_FLOOR)
        if norm > limit:  # norms that are not finite break a rule of their own
            broken.append(("norm", f"norm of {group} is {norm:.3g}, {limit:.3g} is allowed from {live:.3g}"))
    if evidence.calibration is not None and evidence.live_calibration is not None:
        allowed = abs(evidence.live_calibration - 1) + settings.max_calibration_error
        if evidence.events >= settings.min_events and abs(evidence.calibration - 1) > allowed:
            figures = f"{evidence.calibration:.3g}, {allowed:.3g} from 1 is allowed"
            broken.append(("calibration", f"predicted over observed is {figures}"))
    return broken


def _figures(evidence: Evidence, settings: GateSettings) -> dict[str, Any]:
    """Return the figures behind a decision, for the manifest; those of losses only if they were compared."""
    norms = {
        group: {"candidate": _number(norm), "live": _number(live)} for group, (norm, live) in evidence.norms.items()
    }
    figures: dict[str, Any] = {"events": evidence.events, "norms": norms}
    if evidence.events < settings.min_events:
        return figures | {
            "note": f"losses and calibration were not compared: {evidence.events} events, {settings.min_events} needed"
        }
    return figures | {
        "loss_difference": evidence.loss_difference,
        "standard_error": evidence.standard_error,
        "calibration": evidence.calibration,
        "live_calibration": evidence.live_calibration,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row_norms(value: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norms
