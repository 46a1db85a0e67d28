"""Calls between Headwater's own processes ignore the proxies of the environment."""

import gc
import re
import threading
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from peft_adapters.registry import internal_http
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.stores import HttpStore

ROOT = Path(__file__).parents[4]
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, request.param)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.mark.usefixtures("proxied")
def test_a_proxy_of_the_environment_is_not_asked(url: str) -> None:
    assert internal_http.get(f"{url}/readyz", timeout=5).text == "ok"


@pytest.mark.usefixtures("proxied")
def test_a_registry_over_http_is_reached_directly(url: str) -> None:
    assert HttpStore(url).read("home/latest", limit_bytes=10) == b"ok"


def test_every_client_in_the_code_is_made_by_the_one_helper() -> None:
    clients = re.compile(
        r"\bhttpx\.(Client|AsyncClient|HTTPTransport|AsyncHTTPTransport|get|post|put|delete|head|request|stream)\("
        r"|\burlopen\(|\brequests\.(get|post|Session)\("
    )
    sources = [path for package in ("services", "streams", "peft_adapters") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in sources if clients.search(path.read_text(encoding="utf-8"))}
    assert found == {"peft_adapters/registry/internal_http.py"}


def test_a_registry_closes_its_connections_with_its_last_reference() -> None:
    registry = AdapterRegistry("http://127.0.0.1:1/v1/files")
    reference = weakref.ref(registry)
    gc.disable()
    try:
        del registry
        assert reference() is None, "a reference cycle keeps connections open until the next collection"
    finally:
        gc.enable()
