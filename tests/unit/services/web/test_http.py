"""What the HTTP processes share, over a real server."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from services.metrics.requests import RequestMetrics
from services.metrics.updater import UpdaterMetrics
from services.settings.web import SecuritySettings
from services.web.access.install import AccessRules
from services.web.access.keys import KeysFile
from services.web.access.scopes import Scope
from services.web.http import ProblemError, RequestMetricsMiddleware, add_problem_handlers, metrics_response
from services.web.metrics_server import start_metrics_server
from services.web.server import ExposedError, ServeError, running, serve


class Ask(BaseModel):
    items: list[str]


def application(registry: CollectorRegistry) -> FastAPI:
    app = FastAPI()
    add_problem_handlers(app)
    requests = RequestMetrics(registry)
    requests.declare(["/v1/rank"])
    app.add_middleware(RequestMetricsMiddleware, metrics=requests)

    @app.post("/v1/rank")
    async def rank(ask: Ask) -> list[str]:
        if "unknown" in ask.items:
            raise ProblemError(404, "item `unknown` is not in the catalogue", headers={"X-Tried": "1"}, item="unknown")
        return sorted(ask.items)

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(403, "no")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret inside")

    @app.get("/metrics")
    async def metrics() -> Response:
        return metrics_response(registry)

    return app


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def client(registry: CollectorRegistry) -> Iterator[httpx.Client]:
    with running(application(registry)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_problem_says_what_where_and_how(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", json={"items": ["unknown"]})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-tried"] == "1"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "item `unknown` is not in the catalogue",
        "instance": "/v1/rank",
        "item": "unknown",
    }


def test_a_bad_request_names_the_field(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", json={"items": ["a", 7]})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == "body/items/1"
    assert answer.json()["detail"].startswith("body/items/1: ")


def test_a_thoroughly_bad_request_gets_a_short_answer(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", json={"items": [7] * 5000})
    assert answer.status_code == 422
    assert len(answer.content) < 3000


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/rank", 405), ("GET", "/refused", 403)]
)
def test_the_frameworks_own_errors_are_problems_too(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["status"], answer.json()["instance"]) == (status, status, path)
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_unexpected_is_a_problem_that_keeps_its_secret(client: httpx.Client) -> None:
    answer = client.get("/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["title"] == "Internal Server Error"


def test_requests_are_counted_under_their_route(client: httpx.Client) -> None:
    client.post("/v1/rank", json={"items": ["a"]})
    client.post("/v1/rank", json={})
    client.get("/nowhere")
    client.get("/broken")
    text = client.get("/metrics").text
    assert 'headwater_requests_total{route="/v1/rank",status="200"} 1.0' in text
    assert 'headwater_requests_total{route="/v1/rank",status="422"} 1.0' in text
    assert 'headwater_requests_total{route="other",status="404"} 1.0' in text
    assert 'headwater_requests_total{route="other",status="500"} 1.0' in text
    assert 'headwater_request_seconds_count{route="/v1/rank"} 2.0' in text


def test_the_metrics_page_is_what_prometheus_reads(client: httpx.Client) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_a_process_without_an_application_serves_its_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    registry = CollectorRegistry()
    UpdaterMetrics(registry).learning.micro_batch_learnt(0.5)
    server = start_metrics_server(registry, "127.0.0.1", 0)
    try:
        assert capsys.readouterr().out == f"listening 127.0.0.1 {server.port}\n"
        answer = httpx.get(f"http://127.0.0.1:{server.port}/metrics")
        assert "headwater_batches_total 1.0" in answer.text
    finally:
        server.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/metrics")


def test_the_metrics_of_such_a_process_ask_for_a_key_too(tmp_path: Path) -> None:
    token = KeysFile(tmp_path / "keys.json").make("prometheus", [Scope.read])
    access = AccessRules(security=SecuritySettings(keys_file=tmp_path / "keys.json"))
    with closing(start_metrics_server(CollectorRegistry(), "0.0.0.0", 0, access=access)) as server:  # noqa: S104
        url = f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 401
        answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
        assert 'headwater_turned_away_total{reason="missing"} 1.0' in answer.text
    with pytest.raises(ExposedError):
        start_metrics_server(CollectorRegistry(), "0.0.0.0", 0)  # noqa: S104


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve(FastAPI(), "127.0.0.1", port)
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            start_metrics_server(CollectorRegistry(), "127.0.0.1", port)


SLOW_SERVER = textwrap.dedent(
    """
    import asyncio, contextlib
    from fastapi import FastAPI
    from services.web.server import serve

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        print("lifespan over", flush=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/slow")
    async def slow():
        print("asked", flush=True)
        await asyncio.sleep(0.5)
        return "answered"

    serve(app, "127.0.0.1", 0)
    print("serve returned", flush=True)
    """
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_in_flight_finish_and_serve_return(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        word, host, port = process.stdout.readline().split()
        assert word == "listening"
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert process.stdout.readline() == "asked\n"
            os.kill(process.pid, number)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert b"200 OK" in answer
        assert b"answered" in answer
        assert process.stdout.read().splitlines() == ["lifespan over", "serve returned"]
        assert process.wait(timeout=10) == 0
