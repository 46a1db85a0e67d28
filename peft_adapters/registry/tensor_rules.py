"""Rules for the tensors of a bundle: their names, types and ranges of values.

Every tensor of a bundle is looked up in one table, and a tensor without a rule is refused, so none stays unchecked. A
check makes one pass over the values without allocation: `torch.aminmax` propagates NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from peft_adapters.errors import ModelValueError

ROLES = ("query", "candidate")
HALVED = ("events", "shown", "clicked", "bought", "repeated", "popularity_now")  # counts that are halved after drift
PER_ITEM = (*HALVED, "events_since_first", "events_since_last")  # counters with one value per item
MATRICES = ("transition", "skip_transition", "followed", "neighbour")  # sparse counters of pairs of items
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_LARGEST_INT32 = torch.iinfo(torch.int32).max
_LARGEST_COUNT = float(2**53)

Groups = Mapping[str, Mapping[str, Tensor]]


class Rule(NamedTuple):
    """Allowed types and range of a tensor's values.

    Attributes:
        dtypes: the allowed types.
        lowest: the smallest allowed value.
        highest: the largest allowed value.
    """

    dtypes: tuple[torch.dtype, ...]
    lowest: float
    highest: float


WEIGHT = Rule(FLOATS, -_LARGEST_FLOAT32, _LARGEST_FLOAT32)
COUNT = Rule((torch.float32,), 0, _LARGEST_COUNT)
INDEX = Rule((torch.int32,), 0, _LARGEST_INT32)
SCALE = Rule((torch.float32,), 0, _LARGEST_FLOAT32)
SHARE = Rule((torch.float32,), 0, 1)
ROUNDED = Rule((torch.int8,), -128, 127)
TIME_MS = Rule((torch.int64,), 0, _LARGEST_COUNT)

# Groups whose tensors are all weights, under any names. A bundle may lack the optional groups and tensors.
_WEIGHT_GROUPS = ("adapter_model", "projections", "next_adapter")
_SECOND_STAGE = ("mean", "w1", "b1", "w2", "b2", "w3")  # tensors of weights; those below have rules of their own
_SESSIONS = ("started", "slots", "lengths", "items")
_OPTIONAL = {"projections", "next_adapter", "heads.click", "heads.purchase"} | {
    *(f"second_stage.{name}" for name in (*_SECOND_STAGE, "scale", "strength")),
    *(f"session_neighbours.{name}" for name in (*_SESSIONS, "last_ms")),
}

_RULES: dict[str, Rule] = {
    **{f"heads.{name}": WEIGHT for name in ("weights", "global_preference", "click", "purchase")},
    **{f"second_stage.{name}": WEIGHT for name in _SECOND_STAGE},
    "second_stage.scale": SCALE,
    "second_stage.strength": SHARE,
    **{f"session_neighbours.{name}": INDEX for name in _SESSIONS},
    "session_neighbours.last_ms": TIME_MS,
    **{f"residuals.{role}.rows": INDEX for role in ROLES},
    **{f"residuals.{role}.values": ROUNDED for role in ROLES},
    **{f"residuals.{role}.scales": SCALE for role in ROLES},
    **{f"counters.{name}": COUNT for name in ("popularity", *PER_ITEM)},
    **{f"counters.{matrix}.{place}": INDEX for matrix in MATRICES for place in ("row", "column")},
    **{f"counters.{matrix}.count": COUNT for matrix in MATRICES},
}


def rule_of(name: str) -> Rule | None:
    """Return the rule of a tensor named `group.tensor`; None if it is unknown."""
    return WEIGHT if name.partition(".")[0] in _WEIGHT_GROUPS else _RULES.get(name)


def require_tensors(groups: Groups) -> None:
    """Check that a bundle holds exactly the expected tensors, and that each follows its rule.

    Raises:
        ModelValueError: a tensor is missing, unknown, of another type, or holds a value that is not allowed.
    """
    named = {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
    required = (_RULES.keys() - _OPTIONAL) | (set(_WEIGHT_GROUPS) - _OPTIONAL)
    missing = sorted(required - named.keys() - groups.keys())
    if missing:
        raise ModelValueError(f"tensor {missing[0]} is missing")
    for name, tensor in named.items():
        rule = rule_of(name)
        if rule is None:
            raise ModelValueError(f"tensor {name} is unknown to this release")
        fault = fault_of(tensor, rule)
        if fault is not None:
            raise ModelValueError(f"tensor {name} {fault}")


def require_finite(groups: Groups) -> None:
    """Check that every tensor, under any name, holds only finite values.

    Raises:
        ModelValueError: a value is not finite, or a tensor's type cannot be checked.
    """
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() or tensor.is_complex():
                fault = fault_of(tensor, Rule(FLOATS, -math.inf, math.inf))
                if fault is not None:
                    raise ModelValueError(f"tensor {group}.{name} {fault}")


def fault_of(tensor: Tensor, rule: Rule) -> str | None:
    """Return a sentence about the first violation of a rule by a tensor; None without any.

    >>> fault_of(torch.tensor([1.0, float("nan")]), COUNT)
    'must hold finite values, got nan'
    >>> fault_of(torch.tensor([2.0, -1.0]), COUNT)
    'must hold values of at least 0, got -1'
    """
    if tensor.dtype not in rule.dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in rule.dtypes)
        return f"must have type {expected}, got {str(tensor.dtype).removeprefix('torch.')}"
    low, high = _extremes(tensor)
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"must hold finite values, got {high if math.isfinite(low) else low}"
    if low < rule.lowest:
        return f"must hold values of at least {rule.lowest:g}, got {low:g}"
    if high > rule.highest:
        return f"must hold values of at most {rule.highest:g}, got {high:g}"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite, without allocating a mask."""
    return all(map(math.isfinite, _extremes(tensor)))


def _extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and largest value, NaN if any value is NaN; 0 and 0 for an empty tensor."""
    if not tensor.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(tensor.detach())
    return float(low), float(high)
