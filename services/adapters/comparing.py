"""What is different between two published versions: how they were learnt, how they were judged, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft_adapters.manifest import Manifest
from peft_adapters.registry import AdapterRegistry

WHOLE_GROUPS = ("adapter_model", "heads", "projections")  # whole in every bundle; the others are changes alone


def compare(registry: AdapterRegistry, scenario: str, first: int, second: int, *, tensors: bool) -> dict[str, Any]:
    """The differences from one version to another, as JSON can hold them.

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
    found: dict[str, Any] = {
        "scenario": scenario,
        "versions": [first, second],
        "events_learned": other.events_learned - one.events_learned,
        "seconds": (other.published_at_ms - one.published_at_ms) / 1_000,
        "event_seconds": (other.watermark_ms - one.watermark_ms) / 1_000,
        "same_base": one.base_digest == other.base_digest,
        "code_versions": sorted({one.code_version, other.code_version}),
        "bytes": [sum(entry.bytes for entry in manifest.files.values()) for manifest in (one, other)],
        "metrics": dict(_figures(one, other)),
    }
    if tensors:
        found["tensors"] = _tensors(registry, one, other)
    return found


def told(found: dict[str, Any]) -> Iterator[str]:
    """The differences in lines of text."""
    first, second = found["versions"]
    yield f"{found['scenario']}: version {first} to version {second}"
    yield f"  {found['events_learned']:+,} events learnt, published {found['seconds']:+,.1f} s"
    if not found["same_base"]:
        yield "  they are for different frozen encoders"
    for name, (one, other) in found["metrics"].items():
        yield f"  {name:<20} {_number(one):>10} -> {_number(other):>10}"
    for name, moved in found.get("tensors", {}).items():
        yield f"  {name:<48} moved {moved['relative']:.4%} of its length, most in one weight {moved['largest']:.3g}"


def _figures(one: Manifest, other: Manifest) -> Iterator[tuple[str, list[float | None]]]:
    for name in sorted(one.metrics | other.metrics):
        pair = [_finite(manifest.metrics.get(name)) for manifest in (one, other)]
        if pair[0] != pair[1]:
            yield name, pair


def _tensors(registry: AdapterRegistry, one: Manifest, other: Manifest) -> dict[str, dict[str, float]]:
    with TemporaryDirectory(prefix="headwater-diff-") as directory:
        pair = [
            dict(_read(registry.fetch(manifest.scenario, manifest.version, Path(directory))))
            for manifest in (one, other)
        ]
    return {name: _moved(pair[0][name], pair[1][name]) for name in sorted(pair[0].keys() & pair[1].keys())}


def _read(directory: Path) -> Iterator[tuple[str, Any]]:
    from safetensors.numpy import load_file

    for group in WHOLE_GROUPS:
        path = directory / f"{group}.safetensors"
        if path.exists():
            yield from ((f"{group}/{name}", tensor.astype(float)) for name, tensor in load_file(path).items())


def _moved(one: Any, other: Any) -> dict[str, float]:
    """How far a tensor went: against its length before, and in the weight that went furthest."""
    import numpy as np

    if one.shape != other.shape:
        return {"relative": math.inf, "largest": math.inf}
    before = float(np.linalg.norm(one))
    away = float(np.linalg.norm(other - one))
    relative = away / before if before else (0.0 if away == 0 else math.inf)
    return {"relative": relative, "largest": float(np.abs(other - one).max(initial=0.0))}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
