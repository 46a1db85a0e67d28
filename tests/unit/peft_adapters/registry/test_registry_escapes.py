"""A hostile registry: no content of its files makes a reader read or write outside its own directory."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import BundleError, BundleFormatError, HeadwaterModelError, ScenarioNameError
from peft_adapters.registry.manifest import FileEntry, manifest_bytes, table_digest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention

SECRET = b"what lies beside the registry"


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    registry.publish(tmp_path / "made", write_small_bundle(tmp_path / "made"))
    (tmp_path / "secret.json").write_bytes(SECRET)
    return registry


def rewrite(registry: AdapterRegistry, change: Callable[[dict[str, Any]], None]) -> None:
    """Forge the manifest, including its digests."""
    path = Path(registry.url) / "home" / "00000001" / "manifest.json"
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_text(json.dumps(raw))


def forge_digest(raw: dict[str, Any]) -> None:
    raw["digest"] = table_digest({name: FileEntry(**entry) for name, entry in raw["files"].items()})


@pytest.mark.parametrize(
    "name",
    ["../../../secret.json", "/etc/x.json", "..", "a/../../x.json", "manifest.json", "%2e%2e.json", "x.pkl", ".x.json"],
)
def test_a_file_name_of_a_forged_manifest_leads_nowhere(registry: AdapterRegistry, tmp_path: Path, name: str) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["files"][name] = {"sha256": hashlib.sha256(SECRET).hexdigest(), "bytes": len(SECRET)}
        forge_digest(raw)

    rewrite(registry, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleFormatError):
        registry.fetch("home", 1, tmp_path / "copy" / "deep" / "down")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"scenario": "../home"},
        {"scenario": "ads"},
        {"version": 2, "snapshot": 2},
        {"version": -1},
        {"version": "1/../2"},
    ],
)
def test_a_manifest_of_another_place_is_refused(
    registry: AdapterRegistry, tmp_path: Path, change: dict[str, Any]
) -> None:
    rewrite(registry, lambda raw: raw.update(change))
    with pytest.raises(BundleError):
        registry.fetch("home", 1, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("scenario", ["..", "../home", "/home", "home/..", "home\0", "%2e%2e"])
def test_a_scenario_that_is_a_path_is_refused_by_every_call(
    registry: AdapterRegistry, scenario: str, tmp_path: Path
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: registry.latest(scenario),
        lambda: registry.versions(scenario),
        lambda: registry.manifest(scenario, 1),
        lambda: registry.chain(scenario, 1),
        lambda: registry.fetch(scenario, 1, tmp_path / "copy"),
        lambda: registry.rollout(scenario),
        lambda: registry.prune(scenario, Retention(versions=1)),
        lambda: registry.next_version(scenario),
    ]
    for call in calls:
        with pytest.raises(ScenarioNameError):
            call()


@pytest.mark.parametrize("latest", [b"../../secret", b"-1", b"1/../../x", "\u0661".encode(), b"9" * 40])
def test_a_latest_that_is_a_path_is_refused(registry: AdapterRegistry, latest: bytes) -> None:
    (Path(registry.url) / "home" / "LATEST").write_bytes(latest)
    with pytest.raises(HeadwaterModelError):
        registry.latest("home")


def test_a_link_out_of_the_registry_gives_nothing_that_is_not_digested(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    file = Path(registry.url) / "home" / "00000001" / "items.json"
    file.unlink()
    file.symlink_to(tmp_path / "secret.json")
    with pytest.raises(BundleError, match=r"items\.json"):
        registry.fetch("home", 1, tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("items.json"))


def test_a_copy_replaced_by_a_link_is_not_written_through(registry: AdapterRegistry, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "copy" / "home").mkdir(parents=True)
    (tmp_path / "copy" / "home" / "00000001").symlink_to(outside)
    with pytest.raises(OSError, match="00000001"):
        registry.fetch("home", 1, tmp_path / "copy")
    assert list(outside.iterdir()) == []


def test_the_manifest_of_a_copy_is_written_anew_not_as_it_came(registry: AdapterRegistry, tmp_path: Path) -> None:
    directory = registry.fetch("home", 1, tmp_path / "copy")
    assert (directory / "manifest.json").read_bytes() == manifest_bytes(registry.manifest("home", 1))
