"""`headwater bench rank`: how many rankings a second a scorer gives, and how long each takes at half of that."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.lab.bench.plan import Load
from services.lab.bench.report import spread, target
from services.lab.bench.requests import Asked, rank_bodies

RANK, RECOMMEND, NOOP = "/v1/rank", "/v1/recommend", "/v1/noop"
WARM_UP_SECONDS = 1.0
ROUNDS = 4  # of each route in turn: what else the machine does meanwhile meets both
CALM = 0.5  # of the saturating rate, at which latency is measured


def measure(
    deployment: BenchDeployment, questions: Sequence[Asked], *, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures `/v1/rank` and `/v1/recommend`.

    Args:
        deployment: Which.
        questions: The requests.
        seconds: Of each of the loads.
        say: Told what is under way.

    Raises:
        BenchError: The scorer does not answer.
    """
    server = deployment.server
    ranks, recommends = rank_bodies(questions, deployment.items), [each.recommend() for each in questions]
    say("how many rankings a second, and how many requests that rank nothing")
    full, empty = in_turns(server, ranks, seconds=seconds)
    say("how long a ranking takes at half of that rate")
    rank = at_half(server, RANK, ranks, full.per_second, seconds=seconds)
    say("how long a recommendation takes")
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


def in_turns(
    server: Server, bodies: Sequence[str], *, seconds: float, rounds: int = ROUNDS
) -> tuple[Load, Load | None]:
    """Saturates ranking and doing nothing in turns; nothing of the latter where a server does not offer it."""
    warm = server.measure(RANK, bodies, seconds=WARM_UP_SECONDS)
    if not warm.answered:
        raise BenchError(f"{server.url}{RANK} does not rank: {warm.first_failure}")
    has_noop = server.measure(NOOP, bodies[:1], seconds=0.2).answered > 0
    routes = [RANK, NOOP] if has_noop else [RANK]
    found: dict[str, list[Load]] = {route: [] for route in routes}
    for turn in range(rounds):
        for route in routes if turn % 2 == 0 else routes[::-1]:
            found[route].append(server.measure(route, bodies, seconds=seconds / rounds))
    return together(found[RANK]), together(found[NOOP]) if has_noop else None


def at_half(server: Server, route: str, bodies: Sequence[str], saturating: float, *, seconds: float) -> dict[str, Any]:
    """Latency at half of the saturating rate, in an open loop."""
    load = server.measure(route, bodies, seconds=seconds, per_second=max(1.0, CALM * saturating))
    return {
        "per_second": round(load.per_second, 1),
        "answered": load.answered,
        "failed": load.failed,
        "first_failure": load.first_failure,
        **spread(load.took_ms),
        "load_late_p99_ms": spread(load.late_ms)["p99_ms"],
    }


def together(loads: Sequence[Load]) -> Load:
    """Several loads as one."""
    return Load(
        seconds=sum(load.seconds for load in loads),
        answered=sum(load.answered for load in loads),
        failed=sum(load.failed for load in loads),
        first_failure=next((load.first_failure for load in loads if load.first_failure), ""),
        took_ms=[took for load in loads for took in load.took_ms],
        late_ms=[late for load in loads for late in load.late_ms],
        first_answers={},
    )


def rank_candidates(body: str) -> list[str]:
    """What one body has to be ranked."""
    candidates: list[str] = json.loads(body)["candidates"]
    return candidates
