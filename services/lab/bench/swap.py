"""Measurement `swap`: the cost of swaps for the requests during them.

The same load runs twice while the same events are published and learnt: first with the worker pinned to its version,
then with every new version served.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft_adapters.registry.registry import AdapterRegistry
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.errors import BenchError
from services.lab.bench.plan import LoadResult
from services.lab.bench.publisher import EventPublisher
from services.lab.bench.rank import LATENCY_LOAD, RANK, WARM_UP_SECONDS
from services.lab.bench.report import spread, target
from services.lab.bench.requests import StorefrontRequest, rank_bodies

LONGEST_SECONDS = 3_600.0
BY = "headwater bench"


def measure(
    deployment: BenchDeployment,
    requests: Sequence[StorefrontRequest],
    *,
    swaps: int,
    per_second: float,
    asked: float | None = None,
    seconds: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure `/v1/rank` with and without swaps.

    Args:
        deployment: the deployment to measure.
        requests: the requests to send.
        swaps: number of swaps in a row.
        per_second: events published per second.
        asked: rankings requested per second; None is half of the saturating rate while events are learnt.
        seconds: length of the load without swaps.
        report: called with a description of each step.

    Raises:
        BenchError: the scorer does not answer, or swapped while it was pinned.
    """
    server, bodies = deployment.server, rank_bodies(requests, deployment.items)
    server.measure(RANK, bodies, seconds=WARM_UP_SECONDS)
    with EventPublisher(deployment, deployment.coming, per_second=per_second):
        with pinned(deployment):
            rate = asked
            if rate is None:
                report("measuring the saturating rate, pinned, while events are learnt")
                rate = max(1.0, LATENCY_LOAD * server.measure(RANK, bodies, seconds=seconds / 4).per_second)
            report(f"{rate:.0f} rankings a second without swaps")
            calm = server.measure(RANK, bodies, seconds=seconds, per_second=rate)
        report(f"the same load until {swaps} swaps are done")
        swapped = server.measure(RANK, bodies, seconds=LONGEST_SECONDS, per_second=rate, until_versions=swaps + 1)
    return _figures(calm, swapped, swaps=swaps, rate=rate, deployment=deployment)


def _figures(
    calm: LoadResult, swapped: LoadResult, *, swaps: int, rate: float, deployment: BenchDeployment
) -> dict[str, Any]:
    made = len(swapped.first_answers) - 1
    without, during = spread(calm.took_ms), spread(swapped.took_ms)
    added = None if during["p99_ms"] is None or without["p99_ms"] is None else during["p99_ms"] - without["p99_ms"]
    return {
        "per_second": round(rate, 1),
        "without": {"answered": calm.answered, "failed": calm.failed, "versions": len(calm.first_answers), **without},
        "during": {
            "swaps": made,
            "seconds": round(swapped.seconds, 1),
            "answered": swapped.answered,
            "failed": swapped.failed,
            "first_failure": swapped.first_failure,
            **during,
        },
        "memory_bytes": deployment.memory_bytes(),
        "targets": [
            target("swaps in a row", made, at_least=swaps),
            target("failed requests", swapped.failed, at_most=0),
            target("p99 ms above the same without swaps", None if added is None else round(added, 3), at_most=5),
        ],
    }


@contextmanager
def pinned(deployment: BenchDeployment) -> Iterator[None]:
    """Pin the workers to their current version within this context; they follow the latest again afterwards.

    Raises:
        BenchError: another rollout is under way.
    """
    registry, scenario = AdapterRegistry(deployment.registry_url), deployment.settings.scenario
    before = registry.rollout(scenario)
    if before.versions or before.canary or before.shadow:
        raise BenchError(
            f"a rollout of {scenario!r} is under way, revision {before.revision}; end it, or measure later"
        )
    version = int(deployment.ready()["adapter_version"])
    registry.set_rollout(before.pinned(version, changed_by=BY, reason="measured without swaps"))
    try:
        yield
    finally:
        now = registry.rollout(scenario)
        registry.set_rollout(now.unpinned(changed_by=BY, reason="measured with swaps"))
