"""`headwater bench swap`: what swaps cost the requests that come meanwhile.

The same load twice, while the same events are published and learnt: first with the worker pinned to the version it has,
then with every new version served.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft_adapters.registry.registry import AdapterRegistry
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.errors import BenchError
from services.lab.bench.pace import Publishing
from services.lab.bench.plan import Load
from services.lab.bench.rank import CALM, RANK, WARM_UP_SECONDS
from services.lab.bench.report import spread, target
from services.lab.bench.requests import Asked, rank_bodies

LONGEST_SECONDS = 3_600.0
BY = "headwater bench"


def measure(
    deployment: BenchDeployment,
    questions: Sequence[Asked],
    *,
    swaps: int,
    per_second: float,
    asked: float | None = None,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures `/v1/rank` with and without swaps.

    Args:
        deployment: Which.
        questions: The requests.
        swaps: So many in a row.
        per_second: Events published a second.
        asked: Rankings a second; None is half of what is answered at most while events are learnt.
        seconds: Of the load without swaps.
        say: Told what is under way.

    Raises:
        BenchError: The scorer does not answer, or swapped while it was pinned.
    """
    server, bodies = deployment.server, rank_bodies(questions, deployment.items)
    server.measure(RANK, bodies, seconds=WARM_UP_SECONDS)
    with Publishing(deployment, deployment.coming, per_second=per_second):
        with pinned(deployment):
            rate = asked
            if rate is None:
                say("how many rankings a second, pinned, while events are learnt")
                rate = max(1.0, CALM * server.measure(RANK, bodies, seconds=seconds / 4).per_second)
            say(f"{rate:.0f} rankings a second without swaps")
            calm = server.measure(RANK, bodies, seconds=seconds, per_second=rate)
        say(f"the same until there have been {swaps} swaps")
        swapped = server.measure(RANK, bodies, seconds=LONGEST_SECONDS, per_second=rate, until_versions=swaps + 1)
    return _found(calm, swapped, swaps=swaps, rate=rate, deployment=deployment)


def _found(calm: Load, swapped: Load, *, swaps: int, rate: float, deployment: BenchDeployment) -> dict[str, Any]:
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
    """Holds the workers at the version they have; they follow the latest again afterwards.

    Raises:
        BenchError: Somebody else has a rollout under way.
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
