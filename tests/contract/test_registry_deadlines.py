"""Reads over HTTP end at their deadline, even if the server sends one byte at a time within each timeout."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from dripping_registry import DrippingRegistry
from prometheus_client import CollectorRegistry
from scorer_stage import until
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryUnavailableError
from peft_adapters.registry.http_deadline import Deadline, bounded_request
from peft_adapters.registry.internal_http import internal_client
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.stores import LISTING_NAME
from services.metrics.scorer import ScorerMetrics
from services.registry import client
from services.registry.changes import Pin
from services.registry.client import HttpClient
from services.scorer import following
from services.scorer.announcements import Announcements
from services.scorer.following import RegistryFollower

READ_SECONDS = 0.6
SLACK_SECONDS = 3.0  # for a busy machine; without a deadline each of these reads takes minutes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    registry.publish(tmp_path / "1", write_small_bundle(tmp_path / "1", 1))
    registry.set_rollout(Rollout(scenario="home", revision=1, stable_version=1))
    (tmp_path / "registry" / "home" / LISTING_NAME).write_text('["00000001/manifest.json"]')
    return tmp_path / "registry"


@pytest.fixture(params=["head", "body"])
def dripping(request: pytest.FixtureRequest, root: Path) -> Iterator[DrippingRegistry]:
    server = DrippingRegistry(root, drips=request.param)
    with server.running():
        yield server


def manifest(registry: AdapterRegistry, _: Path) -> object:
    return registry.manifest("home", 1)


def rollout(registry: AdapterRegistry, _: Path) -> object:
    return registry.rollout("home")


def versions(registry: AdapterRegistry, _: Path) -> object:
    return registry.versions("home")


@pytest.mark.parametrize("read", [manifest, rollout, versions])
def test_a_read_of_the_registry_ends_at_its_deadline(
    dripping: DrippingRegistry, tmp_path: Path, read: Callable[[AdapterRegistry, Path], object]
) -> None:
    registry = AdapterRegistry(f"{dripping.url}/v1/files", read_seconds=READ_SECONDS)
    began = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match=r"not complete within its deadline of 0\.6 s"):
        read(registry, tmp_path)
    assert READ_SECONDS <= time.monotonic() - began < READ_SECONDS + SLACK_SECONDS


def test_the_download_of_a_bundle_ends_too_and_leaves_nothing(dripping: DrippingRegistry, tmp_path: Path) -> None:
    dripping.is_slow = False
    registry = AdapterRegistry(f"{dripping.url}/v1/files", read_seconds=READ_SECONDS)
    known = registry.manifest("home", 1)
    dripping.is_slow = True
    began = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match="within its deadline"):
        list(registry.chunks(known, "residuals.safetensors"))
    assert time.monotonic() - began < READ_SECONDS + SLACK_SECONDS
    with pytest.raises(RegistryUnavailableError, match="within its deadline"):
        registry.fetch("home", 1, tmp_path / "cache")
    dripping.is_slow = False
    assert registry.fetch("home", 1, tmp_path / "cache").is_dir()


def test_a_large_file_has_the_time_that_its_bytes_need() -> None:
    deadline = Deadline(0.2, bytes_per_second=1_000)
    deadline.received(2_000)
    assert 1.5 < deadline.timeout(None) <= 2.2
    assert deadline.timeout(0.5) == 0.5


def test_an_answer_that_is_too_long_is_not_read_to_its_end(root: Path) -> None:
    server = DrippingRegistry(root, drips="body")
    server.is_slow = False
    with server.running() as url, internal_client() as client, pytest.raises(httpx.ReadError, match="longer than 9"):
        bounded_request(client, "GET", f"{url}/home/00000001/manifest.json", seconds=5, limit_bytes=9)


def test_an_operator_s_command_ends_too(dripping: DrippingRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", READ_SECONDS)
    began = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match="within its deadline"):
        HttpClient(dripping.url, None).change("home", Pin(version=1))
    assert time.monotonic() - began < READ_SECONDS + SLACK_SECONDS


def test_a_scorer_s_long_polls_go_on_after_a_server_that_drips(
    dripping: DrippingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(following, "NO_ANSWER_SECONDS", 0.3)
    announcements = Announcements("home", ScorerMetrics(CollectorRegistry()))
    registry = AdapterRegistry(f"{dripping.url}/v1/files", read_seconds=READ_SECONDS)
    follower = RegistryFollower(registry, announcements, poll_seconds=0.02)
    thread = threading.Thread(target=follower.run)
    thread.start()
    try:
        until(
            lambda: "within its deadline" in (" ".join(announcements.status.causes("home", "registry"))),
            timeout_seconds=10,
        )
    finally:
        follower.stop()
        thread.join(10)
