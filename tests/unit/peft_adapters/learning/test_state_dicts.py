"""State dictionaries: composition of parts, and division into tensors and JSON values."""

import json

import pytest
import torch

from peft_adapters.learning.state_dicts import Part, StateDict, collect, distribute, join_tensors, split_tensors


def test_a_state_divided_and_joined_is_the_same() -> None:
    state: StateDict = {
        "heads": {"weights": torch.ones(2), "optimiser": {"step.0": torch.tensor(3)}},
        "counts": {"clicks": 7, "by_user": {"a/b": [1, 2]}},
        "next_adapter": {},
    }
    tensors, rest = split_tensors(state)
    assert [*tensors] == ["heads/weights", "heads/optimiser/step.0"]
    assert rest == {"counts": {"clicks": 7, "by_user": {"a/b": [1, 2]}}, "next_adapter": {}}
    joined = join_tensors(tensors, json.loads(json.dumps(rest)))
    assert joined == state
    assert joined["heads"]["weights"] is state["heads"]["weights"]  # nothing is copied


def test_parts_are_restored_from_the_collected_state() -> None:
    restored: dict[str, StateDict] = {}
    parts = {
        "counts": Part(lambda: {"clicks": 7}, lambda state: restored.update(counts=state)),
        "empty": Part(dict, lambda state: restored.update(empty=state)),
    }
    distribute(parts, split_tensors(collect(parts))[1])
    assert restored == {"counts": {"clicks": 7}, "empty": {}}


def test_what_a_state_lacks_is_named_with_its_part() -> None:
    part = Part(dict, lambda state: state["moment"])
    with pytest.raises(KeyError, match="rows/moment"):
        distribute({"rows": part}, {"rows": {}})
