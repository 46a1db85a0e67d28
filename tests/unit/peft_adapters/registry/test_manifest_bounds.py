"""Numbers in manifests and rollouts are bounded, so that no reader overflows on them."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import BundleFormatError, RolloutFormatError, VersionConflictError
from peft_adapters.registry.manifest import FileEntry, manifest_bytes, parse_manifest, table_digest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import parse_rollout

HUGE = [10**400, 10**19, -1, 1e308, float("nan"), float("inf"), "1e999", None, [1]]
FIELDS = ["version", "snapshot", "watermark_ms", "published_at_ms", "events_learned"]


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(manifest_bytes(write_small_bundle(tmp_path / "bundle")))
    return content


def refuse(raw: dict[str, Any], field: str) -> None:
    raw["digest"] = (
        raw["digest"]
        if field == "files"
        else table_digest({name: FileEntry(**entry) for name, entry in raw["files"].items()})
    )
    with pytest.raises(BundleFormatError, match=rf"wire: not a manifest of format 2: .*`{field}") as caught:
        parse_manifest(json.dumps(raw).encode(), source="wire")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("field", FIELDS)
def test_a_number_beyond_its_bounds(raw: dict[str, Any], field: str, value: object) -> None:
    refuse(raw | {field: value}, field)


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_an_offset_or_a_size_beyond_its_bounds(raw: dict[str, Any], value: object) -> None:
    refuse(raw | {"offsets": {"headwater.clicks/0": value}}, "offsets")
    entry = raw["files"]["items.json"] | {"bytes": value}
    refuse(raw | {"files": raw["files"] | {"items.json": entry}}, "files")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("gate", [{"events": 10**30}, {"norms": [{"live": -(10**60)}]}, {"deep": nested(300)}])
def test_what_the_gate_says_is_bounded(raw: dict[str, Any], gate: dict[str, Any]) -> None:
    refuse(raw | {"gate": gate}, "gate")


def test_too_many_entries(raw: dict[str, Any]) -> None:
    refuse(raw | {"metrics": {str(number): 0.5 for number in range(10_001)}}, "metrics")
    refuse(raw | {"base_digest": "b" * 1_000}, "base_digest")


@pytest.mark.parametrize("value", [10**400, 10**16, -1, 0, float("nan")])
def test_a_rollout_is_bounded_too(value: object) -> None:
    for field in ("stable_version", "revision"):
        if (field, value) != ("revision", 0):
            data = json.dumps({"scenario": "home", field: value}).encode()
            with pytest.raises(RolloutFormatError, match=f"`{field}`"):
                parse_rollout(data, scenario="home", source="wire")


@pytest.mark.parametrize("data", ["0", "9" * 31, "-1", "1e3", "nan", "", "1 2"])
def test_a_latest_that_is_no_version_number(tmp_path: Path, data: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "LATEST").write_text(data)
    with pytest.raises(BundleFormatError, match="LATEST: expected a version number"):
        AdapterRegistry(str(tmp_path)).latest("home")


def test_directories_beyond_the_largest_version_are_no_versions(tmp_path: Path) -> None:
    registry = AdapterRegistry(str(tmp_path))
    (tmp_path / "home" / ("9" * 40)).mkdir(parents=True)
    (tmp_path / "home" / ("9" * 40) / "manifest.json").write_text("{}")
    assert registry.next_version("home") == 1
    (tmp_path / "home" / str(10**12)).mkdir()
    (tmp_path / "home" / str(10**12) / "items.json").write_text("[]")
    with pytest.raises(VersionConflictError, match="no version may be above"):
        registry.next_version("home")
