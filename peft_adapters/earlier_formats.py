"""Formats of earlier releases on disk, and their translation to today's names.

Release 0.1 called the global preference `taste`, and wrote checkpoints of version 7, whose tensors had names of their
own instead of the paths of `Learner.state_dict`. Release 0.2 counted pairs of items of a session without their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")

VERSION_OF_0_1 = 7  # of a checkpoint's `state.json`

SINCE_0_2 = ("repeated", "popularity_now", "events_since_first", "events_since_last")  # counters with a value per item

_BUNDLE_NAMES = {"heads": {"taste": "global_preference"}}  # by group

# Name of a tensor in a checkpoint of version 7, and its path today; the first pattern that matches counts.
_PATHS = tuple(
    (re.compile(pattern), path)
    for pattern, path in (
        (r"(heads|text)", r"ranker/\1"),
        (r"taste", r"ranker/global_preference"),
        (r"residuals\.(.+)", r"ranker/residuals/\1"),
        (r"catalogue_heads", r"positives/heads"),
        (r"catalogue_taste", r"positives/global_preference"),
        (r"heads_optimiser/(.+)", r"positives/heads_optimiser/\1"),
        (r"taste_optimiser/(.+)", r"positives/global_preference_optimiser/\1"),
        (r"rows\.(.+)", r"positives/rows/\1"),
        (r"likelihood_heads", r"lora/heads"),
        (r"likelihood_optimiser/(.+)", r"lora/heads_optimiser/\1"),
        (r"lora_optimiser/(.+)", r"lora/optimiser/\1"),
        (r"lora/(.+)", r"lora/trained/\1"),
        (r"served_lora/(.+)", r"lora/served/\1"),
        (r"lists/outcomes\.(\w+)\.(\w+)\.(\w+)", r"lists/outcomes/\1/\2/\3"),
        (r"lists/rows\.(\w+)\.(.+)", r"lists/rows/\1/\2"),
        (r"lists/taste", r"lists/global_preference"),
        (r"lists/taste\.(.+)", r"lists/optimisers/global_preference/\1"),
        (r"lists/(\w+)\.(.+)", r"lists/optimisers/\1/\2"),
        (r"other_vectors/(.+)", r"catalogue/vectors/\1"),
        (r"plain/(.+)", r"text_vectors/\1"),
        (r"lora_ahead/(.+)", r"next_adapter/\1"),
        (r"lora_replay/(\d+)\.asked", r"lora_replay/\1.query_vector"),
    )
)


def bundle_of_0_1(groups: Mapping[str, Mapping[str, _Value]]) -> dict[str, dict[str, _Value]]:
    """Return the groups of a bundle with today's names; those of a bundle of today are unchanged.

    >>> bundle_of_0_1({"heads": {"taste": 1}})
    {'heads': {'global_preference': 1}}
    """
    return {
        group: {_BUNDLE_NAMES.get(group, {}).get(name, name): value for name, value in tensors.items()}
        for group, tensors in groups.items()
    }


def bundle_of_0_2(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the groups of a bundle with the counters of today, which hold the order of pairs."""
    return {
        group: {
            name: value
            for name, value in counters_of_0_2(tensors).items()
            if not name.startswith("cooccurrence.")  # follows from the order
        }
        if group == "counters"
        else dict(tensors)
        for group, tensors in groups.items()
    }


def counters_of_0_2(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of counters with those that came after release 0.2; today's are unchanged.

    Pairs counted without their order are split evenly between both orders, so that neither is preferred.

    >>> counters_of_0_2({"events": 3, "cooccurrence.row": 1, "cooccurrence.count": 4})["followed.count"]
    2.0
    """
    if "events" not in tensors or any(name.startswith("followed.") for name in tensors):
        return dict(tensors)
    followed = {
        name.replace("cooccurrence", "followed"): value * 0.5 if name.endswith(".count") else value
        for name, value in tensors.items()
        if name.startswith("cooccurrence.")
    }
    return {name: tensors["events"] * 0 for name in SINCE_0_2} | dict(tensors) | followed


def model_of_0_1(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the learner's tensors of a checkpoint of version 7 by today's paths.

    >>> model_of_0_1({"lists/taste.step.0": 1, "lora/x.weight": 2, "projections/trained/taste": 3})
    {'lists/optimisers/global_preference/step.0': 1, 'lora/trained/x.weight': 2, 'projections/trained/taste': 3}
    """
    return {_path(name): value for name, value in tensors.items()}


def gate_of_0_1(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the gate's tensors of a checkpoint of version 7, the weights of two versions, by today's paths.

    >>> gate_of_0_1({"live/taste": 1})
    {'live/ranker/global_preference': 1}
    """
    parted = (name.split("/", 1) for name in tensors)
    return {f"{which}/{_path(name)}": value for (which, name), value in zip(parted, tensors.values(), strict=True)}


def learner_of_0_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learner's part of `state.json` of version 7 in today's form."""
    renamed = {key: value for key, value in state.items() if key not in ("items", "lists")}
    return renamed | {"catalogue": {"items": state["items"]}, "list_counts": state["lists"]}


def _path(name: str) -> str:
    for pattern, path in _PATHS:
        match = pattern.fullmatch(name)
        if match is not None:
            return match.expand(path)
    return name
