"""Packed bodies, content types and HEAD, over real servers of all applications."""

import gzip
import json
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector_app import CollectorApp as Collector
from collector_app import open_collector
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from small_bundle import write_small_bundle

from peft_adapters.registry.registry import AdapterRegistry
from services.audit import AuditLog
from services.metrics.access import AccessMetrics
from services.registry.app import create_app
from services.settings.web import LimitSettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import always_read
from services.web.bodies import BodyRules
from services.web.http import add_problem_handlers
from services.web.metrics_server import start_metrics_server
from services.web.server import running

CLICK = {"type": "click", "event_id": "c1", "ts": 1_700_000_000_000, "user_id": "ann", "item_id": "mug"}
JSON = {"content-type": "application/json"}
PACKED = JSON | {"content-encoding": "gzip"}
MIB = 2**20


class Question(BaseModel):
    words: list[str]


@contextmanager
def application(*, max_bytes: int = 10_000, **limits: Any) -> Iterator[tuple[httpx.Client, CollectorRegistry]]:
    """An application like the scorer: its routes declare models."""
    app, series = FastAPI(), CollectorRegistry()
    add_problem_handlers(app)
    rules = BodyRules(max_bytes=max_bytes, remedy="ask for less")
    install_access_control(
        app,
        AccessRules(limits=LimitSettings(**limits)),
        AccessMetrics(series),
        required_scope=always_read,
        body_rules=rules,
    )

    @app.post("/v1/count")
    async def count(question: Question) -> int:
        return len(question.words)

    @app.post("/v1/raw")
    async def raw(request: Request) -> dict[str, Any]:
        return {"bytes": len(await request.body()), "encoding": request.headers.get("content-encoding")}

    with running(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client, series


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with application() as (client, _):
        yield client


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with open_collector(tmp_path / "spool.db", max_body_bytes=5_000, max_batch_events=5) as collector:
        yield collector


def post(client: httpx.Client, content: Any, headers: dict[str, str], path: str = "/v1/count") -> httpx.Response:
    return client.post(path, content=content, headers=headers)


def body(words: int) -> bytes:
    return json.dumps({"words": ["w"] * words}).encode()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    directory = tmp_path_factory.mktemp("head")
    registry = AdapterRegistry(str(directory / "registry"))
    registry.publish(directory / "1", write_small_bundle(directory / "1", 1))
    with ExitStack() as stack:
        served = create_app(registry, access=AccessRules(audit=AuditLog(directory / "audit.jsonl")))
        metrics = stack.enter_context(closing(start_metrics_server(CollectorRegistry(), "127.0.0.1", 0)))
        yield {
            "registry": stack.enter_context(running(served)),
            "collector": str(stack.enter_context(open_collector(directory / "spool.db")).client.base_url),
            "metrics page": f"http://127.0.0.1:{metrics.port}",
        }


class TestPacked:
    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip"])
    def test_gzip_is_unpacked(self, client: httpx.Client, coding: str) -> None:
        assert post(client, gzip.compress(body(7)), JSON | {"content-encoding": coding}).json() == 7

    def test_the_application_sees_a_plain_body(self, client: httpx.Client) -> None:
        assert post(client, gzip.compress(b"{}"), PACKED, "/v1/raw").json() == {"bytes": 2, "encoding": None}

    def test_so_does_a_body_in_pieces_and_in_members(self, client: httpx.Client) -> None:
        whole = body(900)
        packed = gzip.compress(whole[:100]) + gzip.compress(b"") + gzip.compress(whole[100:])
        assert post(client, (packed[at : at + 1] for at in range(len(packed))), PACKED).json() == 900

    def test_identity_is_plain(self, client: httpx.Client) -> None:
        assert post(client, body(3), JSON | {"content-encoding": "identity"}).json() == 3

    @pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "compress"])
    def test_other_codings_are_415_and_name_the_known_one(self, client: httpx.Client, coding: str) -> None:
        answer = post(client, body(1), JSON | {"content-encoding": coding})
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "gzip, identity"
        assert answer.headers["content-type"] == "application/problem+json"
        assert f"must be gzip, or be left out, got '{coding}'" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            body(2),
            gzip.compress(body(2))[:-1],
            gzip.compress(body(2))[:5],
            gzip.compress(body(2)) + b"more",
            gzip.compress(body(2))[:-8] + b"\0" * 8,
            zlib.compress(body(2)),
        ],
        ids=["empty", "plain", "cut", "head", "trailing", "checksum", "zlib"],
    )
    def test_damaged_gzip_is_400(self, client: httpx.Client, content: bytes) -> None:
        answer = post(client, content, PACKED)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert "gzip" in answer.json()["detail"]

    @pytest.mark.parametrize("size", [10_001, 1_000_000])
    def test_the_limit_holds_for_what_is_unpacked(self, client: httpx.Client, size: int) -> None:
        answer = post(client, gzip.compress(b" " * size), PACKED)
        assert answer.status_code == 413
        assert "at most 10000 bytes; ask for less" in answer.json()["detail"]

    def test_the_largest_body_passes(self, client: httpx.Client) -> None:
        assert post(client, gzip.compress(b" " * 10_000), PACKED, "/v1/raw").json()["bytes"] == 10_000

    def test_a_bomb_takes_no_more_memory_than_the_limit(self) -> None:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = b"".join(squeezer.compress(bytes(MIB)) for _ in range(512)) + squeezer.flush()  # half a GiB
        with application(max_bytes=2 * MIB) as (client, _):
            tracemalloc.start()
            try:
                assert post(client, bomb, PACKED).status_code == 413
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert peak < 16 * MIB

    def test_the_collector_takes_packed_events(self, collector: Collector) -> None:
        answer = post(collector.client, gzip.compress(json.dumps(CLICK).encode()), PACKED, "/v1/events")
        assert (answer.status_code, len(collector.spool)) == (202, 1)
        bomb = gzip.compress(b" " * 5_001)
        assert post(collector.client, bomb, PACKED, "/v1/events").status_code == 413
        deadline = time.monotonic() + 20  # an answer is counted once it has been sent
        while collector.value("headwater_requests_total", route="/v1/events", status="413") != 1:
            assert time.monotonic() < deadline

    def test_an_unknown_path_is_404_whatever_is_sent(self, client: httpx.Client) -> None:
        assert post(client, b"x", PACKED, "/nowhere").status_code == 404
        assert client.put("/v1/count", content=b"x", headers={"content-encoding": "br"}).status_code == 405


class TestContentType:
    @pytest.mark.parametrize(
        "named",
        [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/json"],
    )
    def test_another_type_is_415_and_names_the_right_one(self, client: httpx.Client, named: str | None) -> None:
        answer = post(client, body(1), {} if named is None else {"content-type": named})
        assert answer.status_code == 415
        assert answer.headers["accept"] == "application/json"
        assert "`Content-Type` must be application/json" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "named", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.shop+json"]
    )
    def test_json_is_taken(self, client: httpx.Client, named: str) -> None:
        assert post(client, body(2), {"content-type": named}).json() == 2

    def test_no_body_needs_no_type(self, client: httpx.Client) -> None:
        assert client.post("/v1/count").status_code == 422

    @pytest.mark.parametrize("origin", [None, "https://shop.example", "own"])
    def test_the_collector_takes_a_beacon(self, tmp_path: Path, origin: str | None) -> None:
        with open_collector(tmp_path / "spool.db", cors_origins=("https://shop.example",)) as collector:
            named = str(collector.client.base_url) if origin == "own" else origin
            headers = {"content-type": "text/plain;charset=UTF-8"} | ({"origin": named} if named else {})
            answer = post(collector.client, json.dumps(CLICK), headers, "/v1/events")
            assert (answer.status_code, len(collector.spool)) == (202, 1)

    def test_not_from_a_page_that_nobody_allowed(self, collector: Collector) -> None:
        """Browsers let any page post `text/plain` anywhere, a developer's own machine included."""
        headers = {"content-type": "text/plain;charset=UTF-8", "origin": "https://evil.example"}
        answer = post(collector.client, json.dumps(CLICK), headers, "/v1/events")
        assert (answer.status_code, len(collector.spool)) == (403, 0)
        assert "`cors_origins`" in answer.json()["detail"]

    def test_the_collector_names_both(self, collector: Collector) -> None:
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = post(collector.client, json.dumps(CLICK), headers, "/v1/events")
        assert (answer.status_code, answer.headers["accept"]) == (415, "application/json, text/plain")


class TestHead:
    @pytest.mark.parametrize(
        ("server", "path"),
        [
            *((server, path) for server in ("registry", "collector") for path in ("/healthz", "/readyz", "/metrics")),
            *((server, path) for server in ("registry", "collector") for path in ("/openapi.json", "/nowhere")),
            ("collector", "/v1/events"),
            ("metrics page", "/healthz"),
            ("metrics page", "/metrics"),
            *(("registry", f"/v1/adapters/home{rest}") for rest in ("", "/1", "/latest", "/rollout", "/9")),
            *(("registry", f"/v1/files/home/{rest}") for rest in ("LATEST", "00000001/manifest.json", "1/nothing")),
        ],
    )
    def test_head_is_get_without_the_body(self, urls: dict[str, str], server: str, path: str) -> None:
        with httpx.Client(base_url=urls[server]) as client:
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert head.headers.get("content-type") == got.headers.get("content-type")
            assert client.get("/healthz").json() == {"status": "ok"}  # nothing was left on the connection

    def test_head_of_a_file_names_its_size_and_its_tag(self, urls: dict[str, str]) -> None:
        registry = f"{urls['registry']}/v1/files/home/1"
        manifest = httpx.get(f"{registry}/manifest.json").json()
        name = next(iter(manifest["files"]))
        head, got = httpx.head(f"{registry}/{name}"), httpx.get(f"{registry}/{name}")
        assert head.headers["content-length"] == str(len(got.content))
        assert head.headers["etag"] == got.headers["etag"]


class TestSlow:
    def test_slow_bodies_hold_up_nobody(self) -> None:
        with application(max_requests=2, body_seconds=20, request_seconds=20) as (client, series), ExitStack() as stack:
            for _ in range(50):
                _begin(stack, client, declared=5_000, sent=100)
            _until_received(series)
            began = time.monotonic()
            assert [post(client, body(3), JSON).json() for _ in range(20)] == [3] * 20
            assert time.monotonic() - began < 10
            assert series.get_sample_value("headwater_requests_shed_total") == 0

    def test_when_memory_runs_out_the_largest_is_refused_and_small_ones_pass(self) -> None:
        limits = {"body_seconds": 20, "request_seconds": 20, "unfinished_body_bytes": 40_000}
        with application(max_bytes=10_000, **limits) as (client, series), ExitStack() as stack:
            slow = [_begin(stack, client, declared=9_500, sent=9_000) for _ in range(6)]
            deadline = time.monotonic() + 20
            while series.get_sample_value("headwater_requests_shed_total") != 2:  # 4 fit
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert post(client, body(200), JSON).json() == 200
            refused = 0
            for connection in slow:
                connection.settimeout(0.2)
                try:
                    refused += connection.recv(100).startswith(b"HTTP/1.1 503")
                except TimeoutError:
                    connection.sendall(b" " * 500)
                    connection.settimeout(20)
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert refused == 2

    def test_a_client_that_drips_is_given_up_in_time(self) -> None:
        with application(body_seconds=0.3) as (client, series), ExitStack() as stack:
            connection = _begin(stack, client, declared=9_500, sent=1)
            began = time.monotonic()
            answer = b""
            while not answer:
                connection.sendall(b" ")
                connection.settimeout(0.05)
                try:
                    answer = connection.recv(1_000)
                except TimeoutError:
                    assert time.monotonic() - began < 10
            assert answer.startswith(b"HTTP/1.1 408")
            assert series.get_sample_value("headwater_slow_clients_total", {"over": "body"}) == 1

    def test_a_client_that_leaves_takes_its_bytes_along(self) -> None:
        with application(body_seconds=20, request_seconds=20, unfinished_body_bytes=10_000) as (client, series):
            for _ in range(5):
                with ExitStack() as stack:
                    _begin(stack, client, declared=9_500, sent=9_000)
                    time.sleep(0.1)
            assert post(client, body(2), JSON).json() == 2
            assert series.get_sample_value("headwater_requests_shed_total") == 0


def _begin(stack: ExitStack, client: httpx.Client, *, declared: int, sent: int) -> socket.socket:
    """Begin a request, and send only some of its body."""
    address = (client.base_url.host, client.base_url.port or 80)
    connection = stack.enter_context(socket.create_connection(address, timeout=20))
    head = f"POST /v1/raw HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {declared}\r\n\r\n"
    connection.sendall(head.encode() + b" " * sent)
    return connection


def _until_received(series: CollectorRegistry) -> None:
    """Give the server time to take up the requests that were begun."""
    time.sleep(1)
    assert series.get_sample_value("headwater_requests_in_flight") == 0
