"""A worker without Kafka follows its registry: files by looks, a registry process by long polls."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from scorer_stage import until
from small_bundle import write_small_bundle

from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from services.metrics.scorer import ScorerMetrics
from services.registry.app import create_app
from services.scorer import following
from services.scorer.announcements import Announcements
from services.scorer.following import RegistryFollower
from services.web.server import running


@pytest.fixture
def rollouts() -> list[Rollout]:
    return []


@pytest.fixture
def announcements(rollouts: list[Rollout]) -> Announcements:
    return Announcements("home", ScorerMetrics(CollectorRegistry()), on_rollout=rollouts.append)


@pytest.fixture
def store(tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    publish(registry, tmp_path, 1)
    return registry


@pytest.fixture(params=["files", "http"])
def registry(request: pytest.FixtureRequest, store: AdapterRegistry) -> Iterator[AdapterRegistry]:
    if request.param == "files":
        yield store
        return
    with running(create_app(store)) as url:
        yield AdapterRegistry(f"{url}/v1/files")


def publish(registry: AdapterRegistry, directory: Path, version: int) -> None:
    manifest = write_small_bundle(directory / str(version), version)
    registry.publish(directory / str(version), manifest)


@contextmanager
def followed(registry: AdapterRegistry, announcements: Announcements) -> Iterator[None]:
    follower = RegistryFollower(registry, announcements, poll_seconds=0.02)
    thread = threading.Thread(target=follower.run)
    thread.start()
    try:
        yield
    finally:
        follower.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_rollouts_and_versions_are_heard_without_kafka(
    registry: AdapterRegistry,
    store: AdapterRegistry,
    announcements: Announcements,
    rollouts: list[Rollout],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(following, "WAIT_SECONDS", 1.0)
    with followed(registry, announcements):
        until(lambda: [rollout.revision for rollout in rollouts] == [0])
        until(lambda: (latest := announcements.announced("home").latest) is not None and latest.version == 1)
        store.set_rollout(Rollout(scenario="home", revision=1, stable_version=1))
        until(lambda: [rollout.revision for rollout in rollouts] == [0, 1])
        publish(store, tmp_path, 2)
        until(lambda: (latest := announcements.announced("home").latest) is not None and latest.version == 2)


def test_a_version_that_the_topic_has_overtaken_is_passed_over(
    store: AdapterRegistry,
    announcements: Announcements,
    rollouts: list[Rollout],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "GRACE_SECONDS", 0.0)
    newer = write_small_bundle(tmp_path / "newer", 5)
    announcements.update_latest(newer)
    with followed(store, announcements):
        until(lambda: [rollout.revision for rollout in rollouts] == [0])
        store.set_rollout(Rollout(scenario="home", revision=1))
        until(lambda: [rollout.revision for rollout in rollouts] == [0, 1])
        assert announcements.announced("home").latest == newer


def test_a_registry_that_comes_late_is_followed_from_then_on(
    store: AdapterRegistry, announcements: Announcements, rollouts: list[Rollout], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "registry"
    root.rename(elsewhere)
    root.write_text("in the way")  # reading below a file fails, where a missing directory is merely empty
    with followed(store, announcements):
        root.unlink()
        elsewhere.rename(root)
        store.set_rollout(Rollout(scenario="home", revision=1, stable_version=1))
        until(lambda: any(rollout.stable_version == 1 for rollout in rollouts))
