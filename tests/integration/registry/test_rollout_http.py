"""Rollouts over real HTTP: what workers without Kafka ask for, and how soon they hear."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryReadOnlyError, RolloutFormatError
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout, rollout_etag
from services.registry.app import create_app
from services.web.server import running


class Shop:
    """A registry of three versions, and a client of the process that serves it."""

    def __init__(self, registry: AdapterRegistry, client: httpx.Client) -> None:
        self.registry, self.client = registry, client

    def pin(self, version: int) -> Rollout:
        rollout = self.registry.rollout("home").pinned(version)
        self.registry.set_rollout(rollout)
        return rollout

    def wait(self, rollout: Rollout, *, wait_seconds: float) -> httpx.Response:
        headers = {"If-None-Match": f'"{rollout_etag(rollout)}"'}
        return self.client.get(f"/v1/adapters/home/rollout?wait_seconds={wait_seconds}", headers=headers)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    for version in (1, 2, 3):
        registry.publish(tmp_path / str(version), write_small_bundle(tmp_path / str(version), version))
    with running(create_app(registry)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Shop(registry, client)


def test_before_the_first_the_latest_is_followed(shop: Shop) -> None:
    answer = shop.client.get("/v1/adapters/ads/rollout")
    assert Rollout.model_validate_json(answer.content) == Rollout(scenario="ads")


def test_who_knows_it_is_told_so_and_who_knows_another_gets_it(shop: Shop) -> None:
    first, second = shop.pin(1), shop.pin(2)
    assert shop.wait(second, wait_seconds=0).status_code == 304
    answer = shop.wait(first, wait_seconds=0)
    assert Rollout.model_validate_json(answer.content) == second
    assert answer.headers["etag"] == f'"{rollout_etag(second)}"'
    assert answer.headers["cache-control"] == "no-cache"


def test_who_waits_hears_of_a_change_as_it_comes(shop: Shop) -> None:
    first = shop.pin(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(shop.wait, first, wait_seconds=20)
        second = shop.pin(2)
        assert Rollout.model_validate_json(waiting.result(10).content) == second
    assert shop.wait(second, wait_seconds=0.2).status_code == 304


def test_a_reader_of_the_files_over_http_reads_it_and_cannot_change_it(shop: Shop) -> None:
    reader = AdapterRegistry(f"{shop.client.base_url}/v1/files")
    assert reader.rollout("home") == Rollout(scenario="home")
    pinned = shop.pin(2)
    assert reader.rollout("home") == pinned
    with pytest.raises(RegistryReadOnlyError):
        reader.set_rollout(pinned.unpinned())


def test_a_damaged_one_is_an_error_that_names_no_place(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "registry" / "home" / "ROLLOUT.json").write_bytes(b"{")
    answer = shop.client.get("/v1/adapters/home/rollout")
    assert (answer.status_code, answer.json()["detail"][:22]) == (500, "the rollout is damaged")
    assert str(tmp_path) not in answer.text
    with pytest.raises(RolloutFormatError, match="status 500: the rollout is damaged"):
        AdapterRegistry(f"{shop.client.base_url}/v1/files").rollout("home")
