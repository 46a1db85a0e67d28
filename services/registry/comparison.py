"""Comparison of two published versions: events, metrics and tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from services.disks import temporary_directory

WHOLE_GROUPS = ("adapter_model", "heads", "projections")  # complete in every bundle; the other groups hold changes


class TensorChange(BaseModel):
    """The distance between two states of a tensor.

    Attributes:
        relative: norm of the difference, relative to the norm of the first state.
        largest: largest absolute difference of one weight.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    relative: float
    largest: float


class Comparison(BaseModel):
    """The differences from one version to another.

    Attributes:
        scenario: the scenario of both versions.
        versions: the first and the second version.
        events_learned: number of events learnt between the two.
        seconds: time from one publication to the other.
        event_seconds: event time from one watermark to the other.
        same_base: whether both are for the same frozen encoder.
        code_versions: versions of Headwater that published them.
        bytes: sizes of the two bundles.
        metrics: both values of each metric that differs; None for a value that is not finite.
        tensors: changes of the tensors that every bundle holds completely; empty unless requested.
    """

    model_config = ConfigDict(frozen=True)

    scenario: str
    versions: tuple[int, int]
    events_learned: int
    seconds: float
    event_seconds: float
    same_base: bool
    code_versions: list[str]
    bytes: tuple[int, int]
    metrics: dict[str, tuple[float | None, float | None]]
    tensors: dict[str, TensorChange] = {}


def compare(registry: AdapterRegistry, scenario: str, first: int, second: int, *, tensors: bool = False) -> Comparison:
    """Compare two versions.

    Args:
        registry: the registry that holds both.
        scenario: the scenario of both versions.
        first: the number of the earlier version.
        second: the number of the later version.
        tensors: whether to fetch both and compare adapter, heads and projections.

    Raises:
        VersionNotFoundError: one of them is not in the registry.
        BundleError: one of them is damaged.
        RegistryUnavailableError: the store failed.
    """
    before, after = registry.manifest(scenario, first), registry.manifest(scenario, second)
    return Comparison(
        scenario=scenario,
        versions=(first, second),
        events_learned=after.events_learned - before.events_learned,
        seconds=(after.published_at_ms - before.published_at_ms) / 1_000,
        event_seconds=(after.watermark_ms - before.watermark_ms) / 1_000,
        same_base=before.base_digest == after.base_digest,
        code_versions=sorted({before.code_version, after.code_version}),
        bytes=(_bytes(before), _bytes(after)),
        metrics=dict(_changed_metrics(before, after)),
        tensors=_tensor_changes(registry, before, after) if tensors else {},
    )


def _bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files.values())


def _changed_metrics(before: Manifest, after: Manifest) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    for name in sorted(before.metrics | after.metrics):
        pair = _finite(before.metrics.get(name)), _finite(after.metrics.get(name))
        if pair[0] != pair[1]:
            yield name, pair


def _tensor_changes(registry: AdapterRegistry, before: Manifest, after: Manifest) -> dict[str, TensorChange]:
    with temporary_directory("headwater-diff-") as directory:
        old, new = (
            dict(_read_tensors(registry.fetch(manifest.scenario, manifest.version, directory)))
            for manifest in (before, after)
        )
    return {name: _tensor_change(old[name], new[name]) for name in sorted(old.keys() & new.keys())}


def _read_tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    from safetensors.numpy import load_file

    for group in WHOLE_GROUPS:
        path = directory / f"{group}.safetensors"
        if path.exists():
            yield from ((f"{group}/{name}", tensor.astype(float)) for name, tensor in load_file(path).items())


def _tensor_change(before: Any, after: Any) -> TensorChange:
    import numpy as np

    if before.shape != after.shape:
        return TensorChange(relative=math.inf, largest=math.inf)
    length = float(np.linalg.norm(before))
    distance = float(np.linalg.norm(after - before))
    relative = distance / length if length else (0.0 if distance == 0 else math.inf)
    return TensorChange(relative=relative, largest=float(np.abs(after - before).max(initial=0.0)))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
