"""Metrics: names, series that exist from the start, and the identity of event counts."""

import re

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from peft_adapters.learning.drift import DETECTORS
from peft_adapters.lifecycle.gate_rules import RULES
from services.metrics.collector import CollectorMetrics
from services.metrics.intake import EVENT_OUTCOMES
from services.metrics.registry import RegistryMetrics
from services.metrics.scorer import ScorerMetrics
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.web.routes import api_routes
from streams.dead_letters import Reason
from streams.topics import Topics

PROCESSES = [UpdaterMetrics, ScorerMetrics, RegistryMetrics, CollectorMetrics]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.mark.parametrize("process", PROCESSES)
def test_names_carry_prefix_and_unit(
    process: type[UpdaterMetrics | ScorerMetrics | RegistryMetrics | CollectorMetrics], registry: CollectorRegistry
) -> None:
    process(registry)
    families = list(registry.collect())
    assert families
    for family in families:
        assert family.name.startswith("headwater_")
        assert family.documentation
        assert not re.search(r"_(ms|milliseconds|minutes|age)$", family.name)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_the_identity_can_be_checked_on_every_topic_from_the_first_scrape(registry: CollectorRegistry) -> None:
    topics = Topics(clicks="shop.clicks")
    metrics = UpdaterMetrics(registry, topics=topics)

    def value(outcome: str) -> float | None:
        return registry.get_sample_value("headwater_events_total", {"topic": "shop.clicks", "outcome": outcome})

    outcomes = ("in", "learnt", "dead_letter", "duplicate", "expired")
    assert [value(outcome) for outcome in outcomes] == [0.0] * 5
    assert registry.get_sample_value("headwater_events_pending", {"topic": "shop.clicks"}) == 0.0
    counts = dict.fromkeys(EVENT_OUTCOMES, 0) | {"in": 3, "learnt": 2, "pending": 1}
    metrics.intake.show_events({"shop.clicks": counts})
    metrics.intake.show_events({"shop.clicks": counts})
    assert value("in") == 3.0
    assert value("learnt") == 2.0


def test_every_reason_for_a_dead_letter_is_there_at_zero(registry: CollectorRegistry) -> None:
    UpdaterMetrics(registry)
    for reason in Reason:
        assert registry.get_sample_value("headwater_dead_letters_total", {"reason": str(reason.value)}) == 0.0


@pytest.mark.parametrize("process", [UpdaterMetrics, ScorerMetrics])
def test_an_adapter_is_dated_in_seconds(
    process: type[UpdaterMetrics | ScorerMetrics], registry: CollectorRegistry
) -> None:
    process(registry).adapter.show(7, published_at_ms=1_700_000_000_500, watermark_ms=1_600_000_000_250)
    assert registry.get_sample_value("headwater_adapter_version") == 7
    assert registry.get_sample_value("headwater_adapter_published_timestamp_seconds") == 1_700_000_000.5
    assert registry.get_sample_value("headwater_adapter_watermark_timestamp_seconds") == 1_600_000_000.25


def test_routes_are_bounded_whatever_is_asked_for(registry: CollectorRegistry) -> None:
    http = ScorerMetrics(registry).http
    http.declare(["/v1/rank"])
    http.observe("/v1/rank", 200, 0.004)
    for number in range(20):
        http.observe(f"/admin/{number}", 404, 0.001)
    assert registry.get_sample_value("headwater_requests_total", {"route": "/v1/rank", "status": "200"}) == 1
    assert registry.get_sample_value("headwater_requests_total", {"route": "other", "status": "404"}) == 20
    below_5_ms = {"route": "/v1/rank", "le": "0.005"}
    assert registry.get_sample_value("headwater_request_seconds_bucket", below_5_ms) == 1
    assert registry.get_sample_value("headwater_request_seconds_bucket", below_5_ms | {"le": "0.003"}) == 0


def test_two_registries_do_not_know_each_other() -> None:
    first, second = new_registry(), new_registry()
    UpdaterMetrics(first).learning.micro_batch_learnt(0.5)
    UpdaterMetrics(second)
    assert first.get_sample_value("headwater_batches_total") == 1
    assert second.get_sample_value("headwater_batches_total") == 0
    assert first.get_sample_value("process_resident_memory_bytes")


def test_drift_and_gate_series_are_there_at_zero_for_all_that_their_owners_name(registry: CollectorRegistry) -> None:
    UpdaterMetrics(registry)
    for rule in RULES:
        assert registry.get_sample_value("headwater_gate_refusals_total", {"rule": rule}) == 0
    for detector in DETECTORS:
        assert registry.get_sample_value("headwater_drift_alarms_total", {"detector": detector}) == 0


def test_declared_routes_are_there_at_zero(registry: CollectorRegistry) -> None:
    app = FastAPI()
    app.get("/healthz")(lambda: None)
    app.get("/v1/items/{item_id:path}/similar")(lambda: None)
    app.post("/v1/noop", include_in_schema=False)(lambda: None)
    assert api_routes(app) == ["/v1/items/{item_id:path}/similar"]
    RegistryMetrics(registry).http.declare(api_routes(app))
    labels = {"route": "/v1/items/{item_id:path}/similar", "status": "503"}
    assert registry.get_sample_value("headwater_requests_total", labels) == 0
