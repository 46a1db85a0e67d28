"""Rollouts in a registry, on every writable kind of store."""

import uuid
from pathlib import Path

import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import (
    RolloutConflictError,
    RolloutError,
    ScenarioNameError,
    VersionNotFoundError,
)
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention
from peft_adapters.registry.rollout import Canary, Rollout
from peft_adapters.registry.stores import FsspecStore


@pytest.fixture(params=["file", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterRegistry:
    root = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "registry")
    registry = AdapterRegistry(root)
    for version in (1, 2, 3, 4, 5, 6):
        fields = {} if version in (1, 4) else {"delta": True, "snapshot": 1 if version < 4 else 4}
        directory = tmp_path / f"made-{version}"
        registry.publish(directory, write_small_bundle(directory, version, **fields))  # type: ignore[arg-type]
    return registry


class OvertakenStore(FsspecStore):
    """A store in which another process replaces each document just after it is written."""

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        if path.endswith("ROLLOUT.json"):
            super().write(path, Rollout(scenario="home").pinned(4, changed_by="another").model_dump_json().encode())


class TestRolloutContract:
    def test_without_one_the_latest_is_followed(self, registry: AdapterRegistry) -> None:
        assert registry.rollout("home") == Rollout(scenario="home")
        with pytest.raises(ScenarioNameError):
            registry.rollout("../home")

    def test_what_was_said_is_read_back(self, registry: AdapterRegistry) -> None:
        pinned = registry.rollout("home").pinned(2)
        registry.set_rollout(pinned)
        assert registry.rollout("home") == pinned
        assert registry.rollout("ads").stable_version is None

    def test_a_change_of_what_was_changed_meanwhile_is_refused(self, registry: AdapterRegistry) -> None:
        before = registry.rollout("home")
        registry.set_rollout(before.pinned(2, changed_by="ann"))
        with pytest.raises(RolloutConflictError, match="expected revision 0 before the change, found 1 by ann"):
            registry.set_rollout(before.pinned(3))
        assert registry.rollout("home").stable_version == 2

    def test_a_version_that_is_not_there_cannot_be_named(self, registry: AdapterRegistry) -> None:
        with pytest.raises(VersionNotFoundError, match="no version 9"):
            registry.set_rollout(registry.rollout("home").pinned(9))
        assert registry.rollout("home").revision == 0

    def test_pruning_keeps_what_it_names_with_its_chain(self, registry: AdapterRegistry) -> None:
        canary = registry.rollout("home").pinned(2).with_canary(Canary(version=6, percent=5), latest=6)
        registry.set_rollout(canary.model_copy(update={"revision": 1}))
        assert registry.prune("home", Retention(versions=1)) == [3]
        assert registry.chain("home", 2) == [1, 2]
        registry.set_rollout(registry.rollout("home").unpinned())
        assert registry.prune("home", Retention(versions=1)) == [1, 2]


def test_of_two_that_write_in_the_same_instant_one_is_told(tmp_path: Path) -> None:
    root = str(tmp_path / "registry")
    for version in (3, 4):
        directory = tmp_path / f"made-{version}"
        AdapterRegistry(root).publish(directory, write_small_bundle(directory, version))
    overtaken = AdapterRegistry(root, store=OvertakenStore(root))
    with pytest.raises(RolloutConflictError, match="found 1 by another"):
        overtaken.set_rollout(Rollout(scenario="home").pinned(3))


def test_nothing_is_pruned_while_the_rollout_cannot_be_read(tmp_path: Path) -> None:
    registry = AdapterRegistry(str(tmp_path))
    for version in (1, 2):
        directory = tmp_path / f"made-{version}"
        registry.publish(directory, write_small_bundle(directory, version))
    (tmp_path / "home" / "ROLLOUT.json").write_bytes(b"{")
    with pytest.raises(RolloutError, match="delete the file"):
        registry.prune("home", Retention(versions=1))
    assert registry.versions("home") == [1, 2]
