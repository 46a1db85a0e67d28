"""Too many, too late, too slow: told at once, with real connections to a real server."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.metrics.access import AccessMetrics
from services.settings.web import LimitSettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.scope_rules import always_read
from services.web.http import add_problem_handlers, metrics_response
from services.web.server import running

MUCH = 32 * 2**20  # more than buffers of both ends hold


@dataclass
class LimitedApp:
    url: str
    client: httpx.Client
    series: CollectorRegistry
    go_on: threading.Event
    begun: list[str] = field(default_factory=list)

    def value(self, name: str, **labels: str) -> float:
        return self.series.get_sample_value(name, labels) or 0.0

    def until(self, name: str, value: float, **labels: str) -> None:
        deadline = time.monotonic() + 20
        while self.value(name, **labels) != value:
            assert time.monotonic() < deadline, f"{name} is {self.value(name, **labels)}"
            time.sleep(0.005)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)


@contextmanager
def limited_app(**limits: Any) -> Iterator[LimitedApp]:
    series, go_on, app, begun = CollectorRegistry(), threading.Event(), FastAPI(), []
    add_problem_handlers(app)
    access = AccessRules(limits=LimitSettings(**limits))
    install_access_control(
        app, access, AccessMetrics(series), required_scope=always_read, is_long_poll=lambda path: path == "/poll"
    )

    @app.get("/metrics")
    async def metrics() -> Response:
        return metrics_response(series)

    @app.get("/work")
    @app.get("/poll")
    def work(name: str = "") -> str:
        begun.append(name)
        assert go_on.wait(30)
        return "done"

    @app.get("/quick")
    async def quick() -> str:
        return "quick"

    @app.get("/much")
    async def much() -> Response:
        return Response(b"x" * MUCH)

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    with running(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        try:
            yield LimitedApp(url, client, series, go_on, begun)
        finally:
            go_on.set()


def test_more_than_fit_are_told_to_come_back_and_then_fit_again() -> None:
    with limited_app(max_requests=2) as served, ThreadPoolExecutor(2) as pool:
        working = [pool.submit(served.client.get, "/work") for _ in range(2)]
        served.until("headwater_requests_in_flight", 2)
        refused = served.client.get("/quick")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["title"] == "Service Unavailable"
        assert "2 requests" in refused.json()["detail"]
        assert served.value("headwater_requests_shed_total") == 1
        assert served.client.get("/metrics").status_code == 200  # it can still say how it is
        served.go_on.set()
        assert [answer.result().status_code for answer in working] == [200, 200]
        assert served.client.get("/quick").status_code == 200
        served.until("headwater_requests_in_flight", 0)


def test_whoever_waits_for_news_takes_no_place() -> None:
    with limited_app(max_requests=1, request_seconds=0.2, body_seconds=0.2) as served, ThreadPoolExecutor(3) as pool:
        polls = [pool.submit(served.client.get, "/poll") for _ in range(3)]
        while len(served.begun) < 3:
            time.sleep(0.005)
        assert served.client.get("/quick").status_code == 200
        time.sleep(0.3)
        served.go_on.set()
        assert [poll.result().status_code for poll in polls] == [200] * 3


def test_when_time_is_up_the_client_is_told_and_the_place_stays_taken() -> None:
    with limited_app(max_requests=1, request_seconds=0.2, body_seconds=0.2) as served:
        late = served.client.get("/work")
        assert late.status_code == 503
        assert late.headers["retry-after"] == "1"
        assert "within 0.2 s" in late.json()["detail"]
        assert served.value("headwater_requests_late_total") == 1
        assert served.client.get("/quick").status_code == 503  # the work goes on, and it is load
        served.go_on.set()
        served.until("headwater_requests_in_flight", 0)
        assert served.client.get("/quick").status_code == 200  # on the same connection: nothing came after


def test_an_answer_that_has_begun_is_ended_however_long_it_takes() -> None:
    with limited_app(request_seconds=0.2, body_seconds=0.2) as served, served.client.stream("GET", "/much") as answer:
        read = 0
        for chunk in answer.iter_raw(2**20):
            time.sleep(0.4 if read == 0 else 0)
            read += len(chunk)
        assert read == MUCH
        assert served.value("headwater_requests_late_total") == 0


def test_a_body_that_drips_is_not_waited_for() -> None:
    with limited_app(body_seconds=0.2) as served, served.connect() as client:
        client.sendall(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        client.sendall(b"x" * 10)
        answer = client.makefile("rb").read()  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout")
        assert b"application/problem+json" in answer
        assert served.value("headwater_slow_clients_total", over="body") == 1
        served.until("headwater_requests_in_flight", 0)


def test_a_body_in_time_is_read_whole() -> None:
    with limited_app(body_seconds=5) as served:
        assert served.client.post("/body", content=b"x" * 1_000_000).json() == 1_000_000


@pytest.mark.parametrize("sent", [b"", b"GET /quick HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_head_that_does_not_come_closes_the_connection(sent: bytes) -> None:
    with limited_app(head_seconds=0.2) as served, served.connect() as client:
        client.sendall(sent)
        assert _is_gone(client)
        assert served.value("headwater_slow_clients_total", over="head") == 1


def test_so_does_the_second_head_of_a_connection() -> None:
    with limited_app(head_seconds=0.2, idle_seconds=30) as served, served.connect() as client:
        client.sendall(b"GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b'"quick"'):
            answer += client.recv(4_096)
        time.sleep(0.3)  # between requests another clock goes
        client.sendall(b"GET /quick HTT")
        assert _is_gone(client)


def test_work_may_take_longer_than_a_head() -> None:
    with limited_app(head_seconds=0.1) as served, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.client.get, "/work")
        time.sleep(0.3)
        served.go_on.set()
        assert answer.result().status_code == 200


def test_an_answer_that_is_not_read_is_dropped() -> None:
    with limited_app(answer_seconds=0.2) as served, served.connect() as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        served.until("headwater_slow_clients_total", 1, over="answer")
        served.until("headwater_requests_in_flight", 0)


def test_one_connection_too_many_is_told_so() -> None:
    with limited_app(max_connections=2, head_seconds=20) as served:
        with served.connect(), served.connect():
            with served.connect() as third:
                assert third.makefile("rb").read().startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1")
            assert served.value("headwater_slow_clients_total", over="connections") == 1
        deadline = time.monotonic() + 20
        while served.client.get("/quick").status_code != 200:  # room again once the server has seen them go
            assert time.monotonic() < deadline


def test_a_body_must_fit_into_its_request() -> None:
    with pytest.raises(ValidationError, match="`body_seconds` must be at most `request_seconds`, 1, got 2"):
        LimitSettings(request_seconds=1, body_seconds=2)


def _is_gone(client: socket.socket) -> bool:
    try:
        return client.recv(4_096) == b""
    except ConnectionResetError:
        return True
