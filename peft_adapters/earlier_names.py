"""Names that earlier releases gave to tensors on disk, and their names today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

# By group of a bundle.
_BUNDLE_NAMES = {"heads": {"taste": "global_preference"}}  # until 0.1
# Of a checkpoint, and of what the gate keeps beside it under `live/` and `put_by/`.
_CHECKPOINT_NAMES = (
    (re.compile(r"^((?:live/|put_by/)?(?:catalogue_|lists/)?)taste(?=$|\.|_optimiser/)"), r"\1global_preference"),
    (re.compile(r"^(lora_replay/\d+\.)asked$"), r"\1query_vector"),  # until 0.1
)


def bundle_groups_of_today(groups: Mapping[str, dict[str, _Value]]) -> dict[str, dict[str, _Value]]:
    """Return the groups of a bundle with the tensor names of today."""
    return {group: _renamed(tensors, _BUNDLE_NAMES.get(group, {})) for group, tensors in groups.items()}


def checkpoint_tensors_of_today(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the tensors of a checkpoint, or of those beside it, with their names of today.

    >>> checkpoint_tensors_of_today({"taste": 1, "live/lists/taste.step.0": 2, "projections/trained/taste": 3})
    {'global_preference': 1, 'live/lists/global_preference.step.0': 2, 'projections/trained/taste': 3}
    >>> checkpoint_tensors_of_today({"lora_replay/0.asked": 1})
    {'lora_replay/0.query_vector': 1}
    """
    return {_checkpoint_name(name): value for name, value in tensors.items()}


def _renamed(tensors: Mapping[str, _Value], names: Mapping[str, str]) -> dict[str, _Value]:
    return {names.get(name, name): value for name, value in tensors.items()}


def _checkpoint_name(name: str) -> str:
    for pattern, replacement in _CHECKPOINT_NAMES:
        name = pattern.sub(replacement, name)
    return name
