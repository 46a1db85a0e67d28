"""Measurement `rank`: rankings per second of a scorer, and the latency at half of that rate."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.lab.bench.plan import LoadResult
from services.lab.bench.report import spread, target
from services.lab.bench.requests import StorefrontRequest, rank_bodies

RANK, RECOMMEND, NOOP = "/v1/rank", "/v1/recommend", "/v1/noop"
WARM_UP_SECONDS = 1.0
ROUNDS = 4  # of both routes alternately, so that other load on the machine affects both
LATENCY_LOAD = 0.5  # share of the saturating rate at which latency is measured


def measure(
    deployment: BenchDeployment, requests: Sequence[StorefrontRequest], *, seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    """Measure `/v1/rank` and `/v1/recommend`.

    Args:
        deployment: the deployment to measure.
        requests: the requests to send.
        seconds: length of each load.
        report: called with a description of each step.

    Raises:
        BenchError: the scorer does not answer.
    """
    server = deployment.server
    ranks, recommends = rank_bodies(requests, deployment.items), [each.recommend() for each in requests]
    report("measuring the saturating rate of rankings, and of requests that rank nothing")
    full, empty = alternate(server, ranks, seconds=seconds)
    report("measuring the latency of rankings at half of that rate")
    rank = at_half(server, RANK, ranks, full.per_second, seconds=seconds)
    report("measuring recommendations")
    most = server.measure(RECOMMEND, recommends, seconds=seconds / 2)
    recommend = at_half(server, RECOMMEND, recommends, most.per_second, seconds=seconds)
    ratio = full.per_second / empty.per_second if empty is not None and empty.answered else None
    memory = deployment.memory_bytes()
    return {
        "candidates": len(rank_candidates(ranks[0])),
        "rank": {
            "saturating_per_second": round(full.per_second, 1),
            "noop_per_second": round(empty.per_second, 1) if empty is not None else None,
            "over_noop": None if ratio is None else round(ratio, 3),
            **rank,
        },
        "recommend": {"saturating_per_second": round(most.per_second, 1), **recommend},
        "memory_bytes": memory,
        "targets": [
            target("rank p50 ms", rank["p50_ms"], at_most=3),
            target("rank p99 ms", rank["p99_ms"], at_most=10),
            target("rank over no-op", ratio, at_least=0.5),
            target("recommend p99 ms", recommend["p99_ms"], at_most=15),
            target("memory MiB", None if memory is None else round(memory / 2**20), at_most=900),
        ],
    }


def alternate(
    server: Server, bodies: Sequence[str], *, seconds: float, rounds: int = ROUNDS
) -> tuple[LoadResult, LoadResult | None]:
    """Saturate ranking and the no-op route alternately; the second result is None if the server has no such route."""
    warm = server.measure(RANK, bodies, seconds=WARM_UP_SECONDS)
    if not warm.answered:
        raise BenchError(f"{server.url}{RANK} does not rank: {warm.first_failure}")
    has_noop = server.measure(NOOP, bodies[:1], seconds=0.2).answered > 0
    routes = [RANK, NOOP] if has_noop else [RANK]
    loads: dict[str, list[LoadResult]] = {route: [] for route in routes}
    for turn in range(rounds):
        for route in routes if turn % 2 == 0 else routes[::-1]:
            loads[route].append(server.measure(route, bodies, seconds=seconds / rounds))
    return combined(loads[RANK]), combined(loads[NOOP]) if has_noop else None


def at_half(server: Server, route: str, bodies: Sequence[str], saturating: float, *, seconds: float) -> dict[str, Any]:
    """Measure the latency at half of the saturating rate, in an open loop."""
    load = server.measure(route, bodies, seconds=seconds, per_second=max(1.0, LATENCY_LOAD * saturating))
    return {
        "per_second": round(load.per_second, 1),
        "answered": load.answered,
        "failed": load.failed,
        "first_failure": load.first_failure,
        **spread(load.took_ms),
        "load_late_p99_ms": spread(load.late_ms)["p99_ms"],
    }


def combined(loads: Sequence[LoadResult]) -> LoadResult:
    """Return the sum of several loads."""
    return LoadResult(
        seconds=sum(load.seconds for load in loads),
        answered=sum(load.answered for load in loads),
        failed=sum(load.failed for load in loads),
        first_failure=next((load.first_failure for load in loads if load.first_failure), ""),
        took_ms=[took for load in loads for took in load.took_ms],
        late_ms=[late for load in loads for late in load.late_ms],
        first_answers={},
    )


def rank_candidates(body: str) -> list[str]:
    """Return the candidates in the body of a request."""
    candidates: list[str] = json.loads(body)["candidates"]
    return candidates
