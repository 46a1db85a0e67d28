"""Measurement `freshness`: the time from an event to the first answer that has learnt it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from peft_adapters.registry.registry import AdapterRegistry
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.publisher import EventPublisher
from services.lab.bench.rank import RANK
from services.lab.bench.report import percentile, target
from services.lab.bench.requests import StorefrontRequest, rank_bodies
from services.lab.demo.freshness import Freshness

REQUESTS_PER_SECOND = 50.0  # so that an answer is seen at most 20 ms late
DRAIN_SECONDS = 10.0
MOST_P95_SECONDS = 1.0


def measure(
    deployment: BenchDeployment,
    requests: Sequence[StorefrontRequest],
    *,
    per_second: float,
    seconds: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure freshness.

    Args:
        deployment: the deployment to measure.
        requests: the requests sent during the measurement.
        per_second: events published per second.
        seconds: length of the measurement.
        report: called with a description of each step.

    Raises:
        BenchError: the scorer does not answer.
    """
    registry, scenario = AdapterRegistry(deployment.registry_url), deployment.settings.scenario
    freshness = Freshness(lambda version: registry.manifest(scenario, version).offsets)
    report(f"publishing {per_second:.0f} events a second")
    bodies = rank_bodies(requests, deployment.items)
    with deployment.server.load(RANK, bodies, seconds=seconds + DRAIN_SECONDS, per_second=REQUESTS_PER_SECOND) as load:
        began = time.monotonic()
        with EventPublisher(
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
