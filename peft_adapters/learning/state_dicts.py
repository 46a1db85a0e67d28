"""State dictionaries: nested mappings whose leaves are tensors or values that JSON can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

StateDict = dict[str, Any]


class Stateful(Protocol):
    """A part of a model that can be saved and restored bit for bit."""

    @property
    def state_dict(self) -> Callable[[], StateDict]:
        """Return the function that gives the part's state."""

    @property
    def load_state_dict(self) -> Callable[[StateDict], None]:
        """Return the function that restores a state."""


class Part(NamedTuple):
    """A pair of functions as a part.

    Attributes:
        state_dict: gives the state.
        load_state_dict: restores a state that `state_dict` gave.
    """

    state_dict: Callable[[], StateDict]
    load_state_dict: Callable[[StateDict], None]


def collect(parts: Mapping[str, Stateful]) -> StateDict:
    """Return the states of parts by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def distribute(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Restore parts, in their order, from states by name.

    A part without anything to keep may be missing from `state`.

    Raises:
        KeyError: a state lacks something that its part has.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(state.get(name, {}))
        except KeyError as error:
            raise KeyError(f"{name}/{error.args[0]}") from error


def split_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], StateDict]:
    """Divide a state into its tensors, named by their paths, and the rest.

    >>> split_tensors({"heads": {"step": 3}, "counts": {}})
    ({}, {'heads': {'step': 3}, 'counts': {}})
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _split(state, "", tensors)


def _split(state: Mapping[str, Any], path: str, tensors: dict[str, Tensor]) -> StateDict:
    rest: StateDict = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[path + key] = value
        elif isinstance(value, dict) and value:
            inner = _split(value, f"{path}{key}/", tensors)
            if inner:
                rest[key] = inner
        else:
            rest[key] = value
    return rest


def join_tensors(tensors: Mapping[str, Tensor], rest: Mapping[str, Any] | None = None) -> StateDict:
    """Return the state that `split_tensors` divided. The mappings of `rest` are extended in place."""
    state: StateDict = dict(rest or {})
    for path, value in tensors.items():
        *parents, name = path.split("/")
        inner = state
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return state
