"""`headwater bench freshness`: how long it takes from an event to the first answer that has learnt it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from peft_adapters.registry.registry import AdapterRegistry
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.pace import Publishing
from services.lab.bench.rank import RANK
from services.lab.bench.report import percentile, target
from services.lab.bench.requests import Asked, rank_bodies
from services.lab.demo.freshness import Freshness

ASKED_PER_SECOND = 50.0  # an answer that has learnt something is seen 20 ms late at most
DRAIN_SECONDS = 10.0
MOST_P95_SECONDS = 1.0


def measure(
    deployment: BenchDeployment,
    questions: Sequence[Asked],
    *,
    per_second: float,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures freshness.

    Args:
        deployment: Which.
        questions: Requests that are sent all the while.
        per_second: Events published a second.
        seconds: How long.
        say: Told what is under way.

    Raises:
        BenchError: The scorer does not answer.
    """
    registry, scenario = AdapterRegistry(deployment.registry_url), deployment.settings.scenario
    freshness = Freshness(lambda version: registry.manifest(scenario, version).offsets)
    say(f"publishing {per_second:.0f} events a second")
    bodies = rank_bodies(questions, deployment.items)
    with deployment.server.load(RANK, bodies, seconds=seconds + DRAIN_SECONDS, per_second=ASKED_PER_SECOND) as load:
        began = time.monotonic()
        with Publishing(
            deployment, deployment.coming, per_second=per_second, delivered=freshness.delivered
        ) as publishing:
            time.sleep(seconds)
        took_seconds = time.monotonic() - began
        answers = load.result()
    for version, at_seconds in sorted(answers.first_answers.items()):
        freshness.answered(version, at_seconds)
    took = freshness.seconds()
    p95 = percentile(took, 95)
    return {
        "events": publishing.published,
        "events_per_second": round(publishing.published / took_seconds, 1),
        "measured": len(took),
        "never_seen": freshness.waiting,
        "versions": len(answers.first_answers),
        "failed": answers.failed,
        "first_failure": answers.first_failure,
        **{f"p{percent}_seconds": percentile(took, percent) for percent in (50, 95, 99)},
        "targets": [
            target("p95 s from event to answer", None if p95 is None else round(p95, 3), at_most=MOST_P95_SECONDS),
            target("failed requests", answers.failed, at_most=0),
        ],
    }
