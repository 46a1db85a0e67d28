"""The learned state of a version, merged from a full bundle and the deltas that build on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_adapters.errors import BundleFormatError, ModelValueError
from peft_adapters.ranking.calibration import Probabilities
from peft_adapters.ranking.counters import HALF_LIVES_EVENTS, Counters
from peft_adapters.ranking.outcomes import INPUTS
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import dequantise_rows
from peft_adapters.ranking.second_stage import SecondStage
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.registry.bundle import Bundle
from peft_adapters.registry.tensor_rules import PER_ITEM, is_finite, require_tensors
from peft_adapters.settings import FEATURES


@dataclass(frozen=True, slots=True)
class ModelState:
    """The learned state of a version, in the updater's item order; the next delta is applied to it.

    Attributes:
        item_ids: the updater's items in its order.
        heads: [features] weights of the score.
        global_preference: [dim] preference vector shared by all shoppers.
        residuals: fp16 [items, dim] by role; bundles hold them as int8.
        counters: the streaming counters.
        lora: LoRA weights under PEFT's names.
        projections: [dim, length] by modality.
        probabilities: calibration weights of the outcomes; None before the learner has learnt a list.
        second_stage: networks that re-rank the best candidates; a bundle without any is one of zero strength.
        neighbours: the newest sessions; none without those of a bundle.
        next_lora: LoRA weights that a later version will bring; empty if none are announced.
    """

    item_ids: list[str]
    heads: Tensor
    global_preference: Tensor
    residuals: dict[str, Tensor]
    counters: Counters
    lora: dict[str, Tensor]
    projections: dict[str, Tensor]
    probabilities: Probabilities | None = None
    second_stage: SecondStage = field(default_factory=SecondStage.empty)
    neighbours: SessionNeighbours = field(default_factory=SessionNeighbours)
    next_lora: dict[str, Tensor] = field(default_factory=dict)


def state_from_bundle(bundle: Bundle, parent: ModelState | None, *, dim: int) -> ModelState:
    """Check all tensors of a bundle and merge them with the state of the version it builds on.

    Args:
        bundle: a full bundle, or a delta on `parent`.
        parent: state of the version that a delta builds on; None for a full bundle.
        dim: length of the encoder's vectors.

    Raises:
        BundleFormatError: a tensor breaks its rule, or the parts of the bundle do not fit together.
    """
    try:
        require_tensors(bundle.groups)
        return _merged(bundle, parent, dim)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise BundleFormatError(
            f"version {bundle.manifest.version} of {bundle.manifest.scenario!r}: its parts do not fit together: "
            f"{reason}; publish a full bundle"
        ) from error


def probabilities_from_bundle(bundle: Bundle) -> Probabilities | None:
    """Return the calibration weights of the outcomes; None if the bundle's learner had learnt no list.

    Raises:
        ModelValueError: the weights have the wrong shape.
    """
    heads = bundle.groups["heads"]
    if "click" not in heads:
        return None
    probabilities = Probabilities(heads["click"].float(), heads["purchase"].float() if "purchase" in heads else None)
    for weights in probabilities:
        if weights is not None:
            _require(weights.shape == (INPUTS,), f"weights of a probability have shape {tuple(weights.shape)}")
    return probabilities


def _merged(bundle: Bundle, parent: ModelState | None, dim: int) -> ModelState:
    item_ids = [*parent.item_ids, *bundle.item_ids] if parent else bundle.item_ids
    _require(len(set(item_ids)) == len(item_ids), "an item has two rows")
    heads = bundle.groups["heads"]["weights"].float()
    _require(heads.shape == (len(FEATURES),), f"heads have shape {tuple(heads.shape)}, not one weight a feature")
    global_preference = bundle.groups["heads"]["global_preference"].float()
    _require(
        global_preference.shape == (dim,),
        f"global_preference has shape {tuple(global_preference.shape)}, not that of an item's vector",
    )
    return ModelState(
        item_ids=item_ids,
        heads=heads,
        global_preference=global_preference,
        residuals=_merged_residuals(bundle.groups["residuals"], parent, len(item_ids), dim),
        counters=_merged_counters(bundle.groups["counters"], parent, len(item_ids)),
        lora=bundle.groups["adapter_model"],
        projections=_projections(bundle, dim),
        probabilities=probabilities_from_bundle(bundle),
        second_stage=SecondStage.from_tensors(bundle.groups.get("second_stage", {})),
        neighbours=_merged_neighbours(bundle.groups.get("session_neighbours"), parent, len(item_ids)),
        next_lora=bundle.groups.get("next_adapter", {}),
    )


def _merged_counters(changed: Mapping[str, Tensor], parent: ModelState | None, item_count: int) -> Counters:
    counters = parent.counters.copy() if parent else Counters()
    counters.apply(changed)
    _require(counters.popularity.shape == (len(HALF_LIVES_EVENTS), item_count), "popularity is not one an item")
    for name in PER_ITEM:
        _require(getattr(counters, name).shape == (item_count,), f"counters `{name}` are not one an item")
    return counters


def _merged_neighbours(
    changed: Mapping[str, Tensor] | None, parent: ModelState | None, item_count: int
) -> SessionNeighbours:
    kept = parent.neighbours if parent else SessionNeighbours()
    if changed is None:
        return kept
    neighbours = kept.copy()
    neighbours.grow(item_count)
    neighbours.apply(changed)
    return neighbours


def _merged_residuals(
    changed: Mapping[str, Tensor], parent: ModelState | None, item_count: int, dim: int
) -> dict[str, Tensor]:
    residuals = {}
    for role in ROLES:
        rows, values = dequantise_rows(changed, role)
        _require(bool(((rows >= 0) & (rows < item_count)).all()), "a residual is of no item")
        values = values.half()
        _require(values.shape == (len(rows), dim) and is_finite(values), f"bad {role} residuals")
        table = torch.zeros(item_count, dim, dtype=torch.float16)
        if parent is not None:
            table[: len(parent.item_ids)] = parent.residuals[role]
        table[rows] = values
        residuals[role] = table
    return residuals


def _projections(bundle: Bundle, dim: int) -> dict[str, Tensor]:
    projections = {name: weights.float() for name, weights in bundle.groups.get("projections", {}).items()}
    for name, weights in projections.items():
        _require(weights.ndim == 2 and len(weights) == dim, f"bad projection of {name}")
    return projections


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelValueError(message)
