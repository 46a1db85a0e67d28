"""The load of `headwater bench`, on a real server."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, HTTPException, Request

from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.lab.bench.rank import alternate, at_half
from services.web.server import running

BODIES = ['{"candidates": ["a"]}', '{"candidates": ["b"]}']


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    app, count = FastAPI(), itertools.count(1)

    @app.post("/v1/rank")
    async def rank(request: Request) -> dict[str, object]:
        return {"adapter_version": 1 + next(count) // 50, "got": (await request.json())["candidates"]}

    @app.post("/v1/noop")
    async def noop() -> dict[str, object]:
        return {}

    @app.post("/slow")
    async def slow() -> dict[str, object]:
        await asyncio.sleep(0.2)
        return {}

    @app.post("/never")
    async def never() -> dict[str, object]:
        await asyncio.sleep(3)
        return {}

    @app.post("/fails")
    async def fails() -> None:
        raise HTTPException(503, "not today")

    with running(app) as url:
        yield Server(url, headers={"x-key": "k"}, connections=2)


def test_an_open_loop_begins_requests_at_its_rate_and_counts_the_wait_for_a_connection(server: Server) -> None:
    load = server.measure("/slow", BODIES, seconds=1.0, per_second=20.0, seed=3)
    assert load.failed == 0
    assert load.answered == len(load.took_ms) == len(load.late_ms)
    assert 10 <= load.answered <= 32  # a Poisson process of mean 20
    assert max(load.took_ms) > 500  # two connections at 0.2 s each carry half of it: the others waited


def test_a_closed_loop_keeps_all_connections_busy_and_no_more(server: Server) -> None:
    load = server.measure("/slow", BODIES, seconds=1.0)
    assert load.failed == 0
    assert 4 <= load.answered <= 12
    assert max(load.took_ms) < 1_000


def test_versions_are_noted_and_end_a_load_once_there_were_enough(server: Server) -> None:
    load = server.measure("/v1/rank", BODIES, seconds=20.0, until_versions=3)
    assert load.seconds < 20
    assert len(load.first_answers) >= 3
    assert list(load.first_answers.values()) == sorted(load.first_answers.values())


def test_whatever_is_no_success_is_a_failure_that_is_told(server: Server) -> None:
    load = server.measure("/fails", BODIES, seconds=0.2, per_second=50.0)
    assert load.answered == 0
    assert load.failed > 0
    assert load.first_failure.startswith("status 503")


def test_an_answer_that_does_not_come_is_a_failure_and_the_load_goes_on(server: Server) -> None:
    load = server.measure("/never", BODIES, seconds=0.8, timeout_seconds=0.3)
    assert load.answered == 0
    assert load.failed >= 4  # both connections were given up, and replaced


def test_no_server_is_an_error() -> None:
    with pytest.raises(BenchError, match="is the server up"):
        Server("http://127.0.0.1:9").measure("/v1/rank", BODIES, seconds=0.2)


def test_ranking_and_doing_nothing_are_measured_in_turns(server: Server) -> None:
    full, empty = alternate(server, BODIES, seconds=0.1, rounds=1)
    assert full.answered
    assert empty is not None
    assert empty.answered
    assert full.failed == empty.failed == 0
    found = at_half(server, "/v1/rank", BODIES, 40.0, seconds=0.5)
    assert found["failed"] == 0
    assert found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
