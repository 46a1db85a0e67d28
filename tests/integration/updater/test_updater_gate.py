"""A learner spoilt by a bad batch: refused, rolled back and logged; a replay of the journal ends in the same state."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_replay import differences
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from updater_shop import Shop, events, items

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import GateSettings
from services.metrics.series import new_registry
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.loop import Updater
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.topics import Topics

EVENTS, BATCHES = 200, 20
pytestmark = pytest.mark.timeout(60)
RULES = GateSettings(window_events=40, min_events=20, refusals_before_rollback=3)

Poison = Callable[[Learner], None]


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Shop:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection, partitions=1), tmp_path)
    shop.send(*items(20), *events(EVENTS, users=67))
    return shop


def turned_round(learner: Learner) -> None:
    learner.positives.heads.mul_(-5)
    learner.ranker.heads = learner.positives.heads.clone()


def no_number(learner: Learner) -> None:
    learner.positives.heads.fill_(math.nan)
    learner.ranker.residuals["candidate"].fill_(math.nan)
    learner.ranker.heads = learner.positives.heads.clone()


def settings(shop: Shop, **updater: Any) -> Settings:
    made = shop.settings(max_events=EVENTS, keep_checkpoints=1_000, **updater)
    secret = made.privacy.model_validate({"secret": "only for tests"})
    return made.model_copy(update={"gate": RULES, "privacy": secret})


@contextmanager
def updater(settings: Settings, registry: CollectorRegistry, poison: Poison | None) -> Iterator[Updater]:
    """One whose ninth batch does harm."""
    made = Updater(settings, UpdaterMetrics(registry, topics=settings.topics), threading.Event())
    learner, learn = made.learner, made.learner.learn

    def learn_and_spoil(batch: Any, **how: Any) -> float:
        loss = learn(batch, **how)
        if poison is not None and learner.batches_learned == 9:
            poison(learner)
        return loss

    learner.learn = learn_and_spoil  # type: ignore[method-assign]
    yield made


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None
    return found


def test_a_healthy_run_passes_all_the_way(shop: Shop) -> None:
    registry = new_registry()
    with capture_logs() as lines, updater(settings(shop), registry, None) as made:
        made.run()
    assert value(registry, "headwater_adapters_total", outcome="refused") == 0
    assert value(registry, "headwater_rollbacks_total") == 0
    gates = [manifest.gate for manifest in shop.announced()]
    assert [gate["decision"] for gate in gates] == ["passed"] * len(gates)
    assert "note" in gates[0]
    assert gates[-1]["events"] == RULES.window_events
    passed = [line for line in lines if line["event"] == "adapter_passed"]
    assert [line["version"] for line in passed] == [manifest.version for manifest in shop.announced()]
    assert value(registry, "headwater_gate", figure="loss_difference") == gates[-1]["loss_difference"]


@pytest.mark.parametrize(("poison", "rule"), [(turned_round, "loss"), (no_number, "not_finite")])
def test_one_that_was_spoilt_is_refused_goes_back_and_learns_on(shop: Shop, poison: Poison, rule: str) -> None:
    registry = new_registry()
    with capture_logs() as lines, updater(settings(shop), registry, poison) as made:
        made.run()
    (back,) = [line for line in lines if line["event"] == "learner_went_back"]
    assert (back["after_refusals"], back["to_events_learned"] <= 80) == (3, True)
    refused = [line for line in lines if line["event"] == "adapter_refused"]
    assert len(refused) == value(registry, "headwater_adapters_total", outcome="refused") == 3
    assert value(registry, "headwater_gate_refusals_total", rule=rule) >= 1
    assert value(registry, "headwater_rollbacks_total") == 1
    assert value(registry, "headwater_gate_refusals_in_a_row") == 0
    kept = sorted((shop.directory / "registry" / "home" / "refused").glob("*/manifest.json"))
    assert rule in json.loads(kept[-1].read_text())["gate"]["rules"]
    saying = [manifest for manifest in shop.announced() if "went_back" in manifest.gate]
    assert [(manifest.kind, manifest.gate["went_back"]["after_refusals"]) for manifest in saying] == [("full", 3)]
    assert shop.latest().events_learned == EVENTS
    assert made.learner.ranker.heads.isfinite().all()
    assert int(made.learner.ranker.counters.events.sum()) == EVENTS


def test_what_the_gate_decided_is_repeated_from_the_journal_not_from_the_clock(shop: Shop) -> None:
    """Else a killed updater would learn something else than one that was not."""
    often = settings(shop)
    with updater(often, new_registry(), turned_round) as made:
        made.run()
    root = often.updater.checkpoint_dir / "home"
    journals = sorted(root.glob("*/journal-*.jsonl"))
    lines = [line for path in journals for line in path.read_text().splitlines()]
    decided = [json.loads(line).get("gate") for line in lines]
    assert decided.count("refused") == 3
    assert decided.count("published") > 5

    repeat = shop.directory / "repeat"
    fresh = repeat / "checkpoints" / "home" / f"{1:08d}"
    fresh.mkdir(parents=True)
    (fresh / f"journal-{0:010d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    places = {"checkpoint_dir": repeat / "checkpoints", "registry_url": str(repeat / "registry")}
    seldom = settings(shop, publish_seconds=3_600.0, **places)
    with capture_logs() as said, updater(seldom, new_registry(), turned_round) as again:
        again.run()
    assert [line["event"] for line in said].count("learner_went_back") == 1
    assert torch.equal(again.learner.ranker.heads, made.learner.ranker.heads)
    assert differences(root, repeat / "checkpoints" / "home") == []


def test_stopped_with_refusals_it_goes_on_counting_them(shop: Shop) -> None:
    halfway = settings(shop)
    first = halfway.model_copy(update={"updater": halfway.updater.model_copy(update={"max_events": 110})})
    with updater(first, new_registry(), turned_round) as made:
        made.run()
    assert made._quality.gate.refusals == 2  # of the batches 9 to 11 the last is not settled
    with capture_logs() as lines, updater(halfway, new_registry(), None) as made:
        made.run()
    (back,) = [line for line in lines if line["event"] == "learner_went_back"]
    assert back["after_refusals"] == 3
    with closing(made._consumer):
        assert shop.latest().events_learned == EVENTS
