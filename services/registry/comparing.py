"""What is different between two published versions: how they were learnt, how they were judged, and their tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from services.disks import temporary_directory

WHOLE_GROUPS = ("adapter_model", "heads", "projections")  # whole in every bundle; the others are changes alone


class Moved(BaseModel):
    """How far a tensor went.

    Attributes:
        relative: against its length before.
        largest: in the one weight that went furthest.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    relative: float
    largest: float


class Comparison(BaseModel):
    """The differences from one version to another.

    Attributes:
        scenario: of which ranking.
        versions: the one compared with, and the one compared.
        events_learned: between the two.
        seconds: from one publication to the other.
        event_seconds: from one watermark to the other.
        same_base: whether both are for the same frozen encoder.
        code_versions: of the updaters that made them.
        bytes: of the two bundles.
        metrics: those that differ, before and after; None where there is no number.
        tensors: of those that every bundle holds whole, where they were compared.
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
    tensors: dict[str, Moved] = {}


def compare(registry: AdapterRegistry, scenario: str, first: int, second: int, *, tensors: bool = False) -> Comparison:
    """The differences from one version to another.

    Args:
        registry: where both are.
        scenario: of which ranking.
        first: the version to compare with.
        second: the version compared.
        tensors: whether to fetch both and compare adapter, heads and projections.

    Raises:
        VersionNotFoundError: one of them is not there.
        BundleError: one of them is damaged.
        RegistryUnavailableError: the store failed.
    """
    one, other = registry.manifest(scenario, first), registry.manifest(scenario, second)
    return Comparison(
        scenario=scenario,
        versions=(first, second),
        events_learned=other.events_learned - one.events_learned,
        seconds=(other.published_at_ms - one.published_at_ms) / 1_000,
        event_seconds=(other.watermark_ms - one.watermark_ms) / 1_000,
        same_base=one.base_digest == other.base_digest,
        code_versions=sorted({one.code_version, other.code_version}),
        bytes=(_bytes(one), _bytes(other)),
        metrics=dict(_figures(one, other)),
        tensors=_tensors(registry, one, other) if tensors else {},
    )


def _bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files.values())


def _figures(one: Manifest, other: Manifest) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    for name in sorted(one.metrics | other.metrics):
        pair = _finite(one.metrics.get(name)), _finite(other.metrics.get(name))
        if pair[0] != pair[1]:
            yield name, pair


def _tensors(registry: AdapterRegistry, one: Manifest, other: Manifest) -> dict[str, Moved]:
    with temporary_directory("headwater-diff-") as directory:
        pair = [
            dict(_read(registry.fetch(manifest.scenario, manifest.version, directory))) for manifest in (one, other)
        ]
    return {name: _moved(pair[0][name], pair[1][name]) for name in sorted(pair[0].keys() & pair[1].keys())}


def _read(directory: Path) -> Iterator[tuple[str, Any]]:
    from safetensors.numpy import load_file

    for group in WHOLE_GROUPS:
        path = directory / f"{group}.safetensors"
        if path.exists():
            yield from ((f"{group}/{name}", tensor.astype(float)) for name, tensor in load_file(path).items())


def _moved(one: Any, other: Any) -> Moved:
    import numpy as np

    if one.shape != other.shape:
        return Moved(relative=math.inf, largest=math.inf)
    before = float(np.linalg.norm(one))
    away = float(np.linalg.norm(other - one))
    relative = away / before if before else (0.0 if away == 0 else math.inf)
    return Moved(relative=relative, largest=float(np.abs(other - one).max(initial=0.0)))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
