"""A canary is watched from the log of a real broker, and ended for all when it is worse."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from kafka import KafkaAdminClient
from prometheus_client import CollectorRegistry
from small_bundle import write_small_bundle
from structlog.testing import capture_logs
from topic_changes import recreate

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Canary, Rollout
from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.canaries import CanaryMonitor
from services.scorer.deployment import Deployment, in_canary
from services.scorer.ending import canary_ender
from services.scorer.serving_table import ServingTable
from services.settings import load_settings
from services.settings.scorer import CanarySettings
from streams.connection import KafkaConnection
from streams.events import Click, Impression
from streams.producer import EventProducer
from streams.topics import Topics


class Standing:
    """As much of a served model as a deployment shows."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.version = manifest, manifest.version

    def __len__(self) -> int:
        return 1


def until(holds: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def traffic(producer: EventProducer, rollout: Rollout, *, shoppers: int) -> None:
    """Every shopper sees a list; of the stable version most click, of the canary few do."""
    for number in range(shoppers):
        user = f"u{number}"
        canary = in_canary(user, rollout)
        shown = {"user_id": user, "request_id": f"r{number}", "scenario": "home", "ts": number}
        items = [{"item_id": "a", "position": 0}]
        version = "2" if canary else "1"
        producer.send(
            Impression.model_validate(
                {**shown, "event_id": f"i{number}", "items": items, "adapter_version": version if number % 2 else None}
            )
        )
        if number % 10 < (1 if canary else 8):
            producer.send(Click.model_validate({**shown, "event_id": f"c{number}", "item_id": "a"}))
    producer.flush()


@pytest.mark.parametrize("auto_rollback", [True, False])
def test_a_worse_canary_is_told_and_ended_where_it_is_to_end_by_itself(
    kafka_connection: KafkaConnection,
    topics: Topics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_rollback: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = AdapterRegistry(str(tmp_path / "registry"))
    manifests = [write_small_bundle(tmp_path / str(version), version) for version in (1, 2)]
    for version, manifest in enumerate(manifests, start=1):
        registry.publish(tmp_path / str(version), manifest)
    canary = Canary(version=2, percent=50, auto_rollback=auto_rollback)
    rollout = Rollout(scenario="home", revision=1, stable_version=1, canary=canary)
    registry.set_rollout(rollout)
    settings = load_settings(
        kafka=kafka_connection.model_dump(),
        topics=topics.model_dump(),
        scorer={"registry_url": registry.url},
    )
    series = CollectorRegistry()
    metrics = ScorerMetrics(series)
    models = [cast(ServedModel, Standing(manifest)) for manifest in manifests]
    table = ServingTable("home")
    announcements = Announcements(
        "home", metrics, on_rollout=lambda new: table.serve(Deployment(new, stable=models[0]))
    )
    announcements.update_rollout(rollout)
    table.serve(Deployment(rollout, stable=models[0], canary=models[1]))
    watch = CanaryMonitor(
        kafka_connection,
        topics,
        table=table,
        pseudonymise=str,
        settings=CanarySettings(min_shoppers=20),
        metrics=metrics.canaries,
        end=canary_ender(settings, announcements),
    )
    thread = threading.Thread(target=watch.run)
    with capture_logs() as logs, EventProducer(kafka_connection, topics) as producer:
        thread.start()
        try:
            until(lambda: watch._positions is not None)
            traffic(producer, rollout, shoppers=200)
            until(lambda: any(entry["event"] == "canary_is_worse" for entry in logs))
            if auto_rollback:
                until(lambda: registry.rollout("home").revision == 2)
        finally:
            watch.stop()
            thread.join(30)
    told = next(entry for entry in logs if entry["event"] == "canary_is_worse")
    assert told["ends"] == auto_rollback
    assert "click-through of version 2" in told["why"]
    assert (table.deployments()["home"].canary is None) == auto_rollback
    now = registry.rollout("home")
    assert (now.canary is None) == auto_rollback
    assert now.stable_version == 1
    if auto_rollback:
        assert "always-valid p" in now.reason
        assert series.get_sample_value("headwater_canary_rollbacks_total", {"scenario": "home"}) == 1
    else:
        lists = series.get_sample_value("headwater_canary_lists", {"scenario": "home", "arm": "canary"})
        assert lists is not None
        assert lists > 50
        assert (series.get_sample_value("headwater_canary_p_value", {"scenario": "home"}) or 1) < 0.01
    assert json.loads(now.model_dump_json())["scenario"] == "home"


@pytest.mark.kafka
def test_topics_recreated_while_a_canary_runs_are_read_from_their_start(
    apache_kafka: Any, make_topics: Callable[..., Topics], tmp_path: Path
) -> None:
    connection = apache_kafka.connection
    topics = make_topics(connection, partitions=1)
    topics = Topics(**topics.model_dump() | {"dialects": {f"missing-{topics.clicks}": "ga4"}})
    rollout = Rollout(scenario="home", revision=1, stable_version=1, canary=Canary(version=2, percent=50))
    models = [cast(ServedModel, Standing(write_small_bundle(tmp_path / str(version), version))) for version in (1, 2)]
    series = CollectorRegistry()
    table = ServingTable("home")
    table.serve(Deployment(rollout, stable=models[0], canary=models[1]))
    watch = CanaryMonitor(
        connection,
        topics,
        table=table,
        pseudonymise=str,
        settings=CanarySettings(min_shoppers=20),
        metrics=ScorerMetrics(series).canaries,
        end=lambda *_: None,
    )

    def lists() -> float:
        arms = [{"scenario": "home", "arm": arm} for arm in ("stable", "canary")]
        return sum(series.get_sample_value("headwater_canary_lists", labels) or 0 for labels in arms)

    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        until(lambda: watch._positions is not None)
        with EventProducer(connection, topics) as producer:
            traffic(producer, rollout, shoppers=20)
        until(lambda: lists() == 20)
        with closing(KafkaAdminClient(**connection.client_options())) as admin:
            recreate(admin, connection, topics, topics.impressions, topics.clicks)
        with EventProducer(connection, topics) as producer:
            traffic(producer, rollout, shoppers=60)  # the first 20 lists again, which count once
        until(lambda: lists() == 60)
    finally:
        watch.stop()
        thread.join(30)
