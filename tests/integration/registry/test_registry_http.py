"""The registry over real HTTP: what it answers, how long polls wait, and what it never gives away."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from small_bundle import write_small_bundle

from peft_adapters.registry.bundle import Manifest, write_bundle
from peft_adapters.registry.manifest import parse_manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.stores import FsspecStore
from services.registry.app import create_app
from services.web.server import running


class CountingStore(FsspecStore):
    """Counts reads of LATEST."""

    looks = 0

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        self.looks += path.endswith("LATEST")
        return super().read(path, limit_bytes=limit_bytes)


class SlowStore(FsspecStore):
    """Answers each read only once it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answer = threading.Event()

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        assert self.answer.wait(30)
        return super().read(path, limit_bytes=limit_bytes)


class LostStore(FsspecStore):
    """Cannot be reached while `lost`."""

    lost = False

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        if self.lost:
            raise ConnectionError("secret-host refused the connection")
        return super().read(path, limit_bytes=limit_bytes)


class Shop:
    """A registry, a process that serves it, and a client of that process."""

    def __init__(self, registry: AdapterRegistry, client: httpx.Client, workshop: Path) -> None:
        self.registry, self.client, self._workshop = registry, client, workshop

    def publish(self, version: int, **fields: object) -> Manifest:
        directory = self._workshop / f"{version}"
        manifest = write_small_bundle(directory, version, **fields)  # type: ignore[arg-type]
        self.registry.publish(directory, manifest)
        return manifest

    def wait(self, digest: str | None, *, wait_seconds: float, scenario: str = "home") -> httpx.Response:
        headers = {"If-None-Match": f'"{digest}"'} if digest else {}
        return self.client.get(f"/v1/adapters/{scenario}/latest?wait_seconds={wait_seconds}", headers=headers)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    registry = AdapterRegistry(str(tmp_path / "registry"))
    with running(create_app(registry)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Shop(registry, client, tmp_path / "made")


def assert_problem(response: httpx.Response, status: int, detail: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert {"type", "title", "status", "detail"} <= body.keys()
    assert body["status"] == status
    assert detail in body["detail"]


class TestManifests:
    def test_the_list_is_of_all_manifests_oldest_first(self, shop: Shop) -> None:
        assert shop.client.get("/v1/adapters/home").json() == []
        published = [shop.publish(version, metrics={"auc": float("nan")}) for version in (1, 2)]
        answer = shop.client.get("/v1/adapters/home").json()
        assert [Manifest.model_validate(raw).digest for raw in answer] == [manifest.digest for manifest in published]
        assert answer[0]["metrics"] == {"auc": "NaN"}

    def test_the_latest_carries_its_digest_as_entity_tag(self, shop: Shop) -> None:
        manifest = shop.publish(1)
        answer = shop.client.get("/v1/adapters/home/latest")
        assert answer.headers["etag"] == f'"{manifest.digest}"'
        assert answer.headers["cache-control"] == "no-cache"
        assert parse_manifest(answer.content, source="answer") == manifest

    @pytest.mark.parametrize("tag", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
    def test_who_has_the_latest_is_told_so(self, shop: Shop, tag: str) -> None:
        manifest = shop.publish(1)
        answer = shop.client.get("/v1/adapters/home/latest", headers={"If-None-Match": tag.format(manifest.digest)})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{manifest.digest}"'

    def test_who_has_another_gets_the_latest(self, shop: Shop) -> None:
        first = shop.publish(1)
        second = shop.publish(2)
        assert shop.wait(first.digest, wait_seconds=0).json()["version"] == 2
        assert shop.wait(second.digest, wait_seconds=0).status_code == 304

    def test_nothing_published_is_a_problem_that_says_so(self, shop: Shop) -> None:
        assert_problem(shop.client.get("/v1/adapters/home/latest"), 404, "nothing has been published")
        assert_problem(shop.client.get("/v1/files/home/LATEST"), 404, "nothing has been published")

    @pytest.mark.parametrize("wait", ["-1", "30.1", "soon", "nan", "inf"])
    def test_a_wait_out_of_range_is_refused(self, shop: Shop, wait: str) -> None:
        assert_problem(shop.client.get(f"/v1/adapters/home/latest?wait_seconds={wait}"), 422, "wait_seconds")


class TestLongPoll:
    def test_it_answers_as_soon_as_another_version_is_out(self, shop: Shop) -> None:
        first = shop.publish(1)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(shop.wait, first.digest, wait_seconds=20)
            time.sleep(0.3)
            assert not waiting.done()
            second = shop.publish(2)
            began = time.monotonic()
            assert waiting.result().json()["digest"] == second.digest
        assert time.monotonic() - began < 2

    def test_it_waits_for_the_first_version_too(self, shop: Shop) -> None:
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(shop.wait, None, wait_seconds=20)
            time.sleep(0.3)
            assert not waiting.done()
            shop.publish(1)
            assert waiting.result().json()["version"] == 1

    def test_it_ends_unchanged_when_the_time_is_up(self, shop: Shop) -> None:
        first = shop.publish(1)
        began = time.monotonic()
        assert shop.wait(first.digest, wait_seconds=0.5).status_code == 304
        assert 0.5 <= time.monotonic() - began < 3
        assert_problem(shop.wait(None, wait_seconds=0.2, scenario="ads"), 404, "nothing has been published")

    def test_another_scenario_s_version_wakes_nobody(self, shop: Shop) -> None:
        first = shop.publish(1)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(shop.wait, first.digest, wait_seconds=1)
            time.sleep(0.2)
            shop.publish(2, scenario="ads")
            assert waiting.result().status_code == 304

    def test_many_who_wait_read_the_store_as_one(self, tmp_path: Path) -> None:
        store = CountingStore(str(tmp_path / "registry"))
        registry = AdapterRegistry("unused", store=store)
        waiters, wait_seconds = 30, 2.0
        with running(create_app(registry)) as url, httpx.Client(base_url=url, timeout=30) as client:
            shop = Shop(registry, client, tmp_path / "made")
            digest = shop.publish(1).digest
            store.looks = 0
            with ThreadPoolExecutor(waiters) as pool:
                answers = list(pool.map(lambda _: shop.wait(digest, wait_seconds=wait_seconds), range(waiters)))
        assert {answer.status_code for answer in answers} == {304}
        # Each request looks once as it comes; after that one look in 0.1 s serves all. Alone they would take 20 each.
        assert store.looks <= waiters + 1.5 * wait_seconds / 0.1


class TestFiles:
    def test_they_are_laid_out_as_the_registry_is(self, shop: Shop, tmp_path: Path) -> None:
        manifest = shop.publish(1)
        assert shop.client.get("/v1/files/home/LATEST").text == "1\n"
        assert shop.client.get("/v1/files/home/manifests.json").json() == ["00000001/manifest.json"]
        for name in [*manifest.files, "manifest.json"]:
            answer = shop.client.get(f"/v1/files/home/00000001/{name}")
            assert answer.content == (tmp_path / "registry/home/00000001" / name).read_bytes()

    def test_a_file_carries_its_size_and_digest(self, shop: Shop) -> None:
        entry = shop.publish(1).files["items.json"]
        path = "/v1/files/home/00000001/items.json"
        answer = shop.client.get(path)
        assert answer.headers["content-length"] == str(entry.bytes)
        assert answer.headers["etag"] == f'"{entry.sha256}"'
        assert shop.client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304

    def test_a_large_file_comes_in_pieces_and_whole(self, shop: Shop, tmp_path: Path) -> None:
        rows = np.random.default_rng(1).normal(size=(5 * 2**17, 8)).astype(np.float32)  # 20 MiB
        manifest = write_bundle(
            tmp_path / "large", groups={"residuals": {"rows": rows}}, adapter_config={}, item_ids=[],
            scenario="home", version=1, kind="full", snapshot=1, base_digest="base-1", offsets={},
            watermark_ms=0, published_at_ms=0, events_learned=0,
        )  # fmt: skip
        shop.registry.publish(tmp_path / "large", manifest)
        reader = AdapterRegistry(f"{shop.client.base_url}/v1/files")
        there = reader.fetch("home", 1, tmp_path / "cache") / "residuals.safetensors"
        assert there.read_bytes() == (tmp_path / "large/residuals.safetensors").read_bytes()

    @pytest.mark.parametrize(
        "path",
        [
            "home/00000001/..%2f..%2f..%2fsecret.json",
            "home/00000001/%2e%2e/%2e%2e/%2e%2e/secret.json",
            "home/00000001/../../../secret.json",
            "home/..%2f..%2fsecret.json",
            "%2e%2e/1/secret.json",
            "..%2f..%2f/LATEST",
            "home/00000001//etc/passwd",
            "home/00000001/secret.json",
            "home/00000001/%00",
            "home/refused/00000002/items.json",
            "home/00000002/items.json",
            "home/-1/items.json",
            "home/1e3/items.json",
        ],
    )
    def test_no_path_leads_out_of_a_published_version(self, shop: Shop, tmp_path: Path, path: str) -> None:
        shop.publish(1)
        shop.registry.keep_refused(tmp_path / "refused", write_small_bundle(tmp_path / "refused", 2))
        for place in (".", "registry", "registry/home", "registry/home/00000001"):
            (tmp_path / place / "secret.json").write_text("secret")
        # A raw request, because clients tidy dots away.
        host, port = shop.client.base_url.host, shop.client.base_url.port
        with socket.create_connection((host, port or 80), timeout=10) as raw:
            raw.sendall(f"GET /v1/files/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.split(b" ", 2)[1] in (b"404", b"422")
        assert b'"secret"' not in answer.replace(b"secret.json", b"")
        assert not answer.endswith(b"secret")

    @pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
    def test_it_only_reads(self, shop: Shop, method: str) -> None:
        shop.publish(1)
        for path in ("/v1/adapters/home", "/v1/files/home/LATEST", "/v1/files/home/00000001/items.json"):
            assert shop.client.request(method, path, content=b"9").status_code == 405
        assert shop.client.get("/v1/files/home/LATEST").text == "1\n"

    def test_a_name_that_is_no_scenario_s_is_a_problem(self, shop: Shop) -> None:
        for path in ("/v1/adapters/HOME", "/v1/adapters/HOME/latest", "/v1/files/HOME/LATEST"):
            assert_problem(shop.client.get(path), 422, "`scenario` must be 1 to 64")

    def test_a_damaged_version_is_an_error_of_the_server_and_names_no_place(self, shop: Shop, tmp_path: Path) -> None:
        shop.publish(1)
        (tmp_path / "registry/home/00000001/manifest.json").write_text('{"format_version": 9}')
        answer = shop.client.get("/v1/adapters/home/latest")
        assert_problem(answer, 500, "damaged")
        assert str(tmp_path) not in answer.text


class TestHealth:
    def test_healthy_and_ready_before_anything_is_published(self, shop: Shop) -> None:
        assert shop.client.get("/healthz").json() == {"status": "ok"}
        assert shop.client.get("/readyz").json() == {"status": "ready"}

    def test_a_lost_store_is_unready_healthy_and_worth_another_try(self, tmp_path: Path) -> None:
        store = LostStore(str(tmp_path / "registry"))
        with running(create_app(AdapterRegistry("unused", store=store))) as url, httpx.Client(base_url=url) as client:
            store.lost = True
            assert client.get("/healthz").status_code == 200
            for path in ("/readyz", "/v1/adapters/home/latest", "/v1/files/home/LATEST"):
                answer = client.get(path)
                assert_problem(answer, 503, "store does not answer; try again")
                assert answer.headers["retry-after"] == "1"
                assert "secret-host" not in answer.text
            store.lost = False
            assert client.get("/readyz").status_code == 200

    def test_a_slow_store_does_not_hold_up_health(self, tmp_path: Path) -> None:
        store = SlowStore(str(tmp_path / "registry"))
        with (
            running(create_app(AdapterRegistry("unused", store=store))) as url,
            httpx.Client(base_url=url, timeout=30) as client,
            ThreadPoolExecutor(60) as pool,  # more than the server has threads for
        ):
            waiting = [pool.submit(client.get, "/v1/files/home/LATEST") for _ in range(60)]
            time.sleep(0.3)
            began = time.monotonic()
            with httpx.Client(base_url=url) as probe:
                assert probe.get("/healthz").status_code == 200
                assert probe.get("/metrics").status_code == 200
            assert time.monotonic() - began < 2
            assert not any(answer.done() for answer in waiting)
            store.answer.set()
            assert {answer.result().status_code for answer in waiting} == {404}

    def test_requests_are_counted_by_route(self, shop: Shop) -> None:
        shop.publish(1)
        shop.client.get("/v1/files/home/00000001/items.json")
        shop.client.get("/v1/files/home/00000001/nothing.json")
        text = shop.client.get("/metrics").text
        route = 'route="/v1/files/{scenario}/{version}/{file}"'
        assert f'headwater_requests_total{{{route},status="200"}} 1.0' in text
        assert f'headwater_requests_total{{{route},status="404"}} 1.0' in text
