"""A worker obeys rollouts: pin, canary, shadow and rollback, at once where it holds what they ask for."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scorer_stage import Stage, until
from structlog.testing import capture_logs
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.registry.rollout import Canary, Rollout, Shadow, rollout_bytes
from peft_adapters.serving import model_builder as serving
from services.scorer import model_factory


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def stage(tmp_path: Path, encoder: Encoder) -> Stage:
    return Stage(tmp_path, encoder)


def versions(stage: Stage) -> dict[str, int]:
    deployment = stage.table.deployment("home")
    return {arm: model.version for arm, model in deployment.models.items()} if deployment else {}


def told(stage: Stage, revision: int, **fields: Any) -> None:
    stage.announcements.read_record(
        b"home/rollout", rollout_bytes(Rollout(scenario="home", revision=revision, **fields))
    )


def published(stage: Stage, count: int) -> None:
    for version in range(1, count + 1):
        stage.publish(version, full=version == 1)
        until(lambda version=version: stage.version == version)  # type: ignore[misc]


def test_a_rollback_is_obeyed_before_hear_returns_even_while_a_build_is_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, build = threading.Event(), serving.build_model

    def endless(bundles: Sequence[Any], *, stop: threading.Event, **parts: Any) -> Any:
        if bundles[-1].manifest.version == 4:
            building.set()
            assert stop.wait(30)
        return build(bundles, stop=stop, **parts)

    monkeypatch.setattr(model_factory, "build_model", endless)
    with stage.running():
        published(stage, 3)
        stage.publish(4)
        assert building.wait(30)
        fetched = len(stage.registry.fetched)
        told(stage, 1, stable_version=2)
        assert versions(stage) == {"stable": 2}
        assert stage.series.get_sample_value("headwater_adapter_version") == 2
        assert stage.series.get_sample_value("headwater_rollout_revision", {"scenario": "home"}) == 1
    assert len(stage.registry.fetched) == fetched


def test_a_pin_to_what_is_not_held_leaves_the_build_under_way_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, build = threading.Event(), serving.build_model

    def slow(bundles: Sequence[Any], *, stop: threading.Event, **parts: Any) -> Any:
        if bundles[-1].manifest.version == 4 and not building.is_set():
            building.set()
            assert stop.wait(30)
        return build(bundles, stop=stop, **parts)

    monkeypatch.setattr(model_factory, "build_model", slow)
    stage.publish(1, full=True)
    stage.publish(2)
    stage.publish(3)
    with stage.running():
        until(lambda: stage.version == 3)
        stage.publish(4)
        assert building.wait(30)
        told(stage, 1, stable_version=1)
        until(lambda: versions(stage) == {"stable": 1})
        told(stage, 2)
        until(lambda: versions(stage) == {"stable": 4})


def test_canary_and_shadow_are_built_beside_and_end_at_a_word(stage: Stage) -> None:
    with stage.running():
        published(stage, 3)
        told(stage, 1, stable_version=3, canary=Canary(version=2, percent=50), shadow=Shadow(version=1))
        assert versions(stage) == {"stable": 3, "canary": 2, "shadow": 1}
        stage.publish(4)
        told(stage, 2, stable_version=3, canary=Canary(percent=50))
        until(lambda: versions(stage) == {"stable": 3, "canary": 4})
        assert stage.series.get_sample_value("headwater_canary_share_ratio", {"scenario": "home"}) == 0.5
        told(stage, 3, stable_version=3)
        assert versions(stage) == {"stable": 3}
        gone = {"scenario": "home", "arm": "canary"}
        assert stage.series.get_sample_value("headwater_arm_version", gone) is None
    assert stage.count("refused") == 0


def test_an_older_rollout_that_comes_late_changes_nothing(stage: Stage) -> None:
    with stage.running():
        published(stage, 2)
        told(stage, 5, stable_version=1)
        told(stage, 4, stable_version=2)
        assert versions(stage) == {"stable": 1}


def test_started_under_a_pin_it_never_serves_the_latest(stage: Stage) -> None:
    stage.publish(1, full=True)
    stage.publish(2)
    stage.registry.set_rollout(Rollout(scenario="home", revision=1, stable_version=1))
    with stage.running():
        until(lambda: stage.version is not None)
        assert stage.version == 1
    assert stage.count("swapped") == 1


def test_it_serves_nothing_before_it_knows_what_it_may_serve(stage: Stage) -> None:
    stage.publish(1, full=True)
    stage.registry.away = True
    with stage.running():
        until(lambda: stage.registry.asked > 2)
        assert stage.version is None
        stage.registry.away = False
        until(lambda: stage.version == 1)


def test_a_rollout_that_is_none_is_refused_and_told(stage: Stage) -> None:
    with stage.running(), capture_logs() as logs:
        published(stage, 1)
        stage.announcements.read_record(b"home/rollout", b'{"scenario": "home", "revision": -1}')
        stage.announcements.read_record(b"search/rollout", b"{}")
    assert stage.count("refused") == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["announcement_refused"]


def test_what_was_refused_is_not_fetched_again_until_a_rollout_changes(stage: Stage) -> None:
    with stage.running():
        published(stage, 1)
        bad = stage.publish(2, announce=False)
        file = stage.directory / "registry" / "home" / "00000002" / "residuals.safetensors"
        good = file.read_bytes()
        file.write_bytes(good[:-1] + b"\x7f")
        stage.announcements.update_latest(bad)
        until(lambda: stage.count("refused") == 1)
        stage.announcements.requeue("home")
        time.sleep(0.1)
        assert stage.count("refused") == 1
        file.write_bytes(good)
        told(stage, 1, stable_version=2)
        until(lambda: stage.version == 2)


def test_items_that_came_meanwhile_join_a_kept_version_after_the_flip(stage: Stage) -> None:
    with stage.running():
        published(stage, 2)
        stage.item("item-late", "a vase")
        until(lambda: "item-late" in stage.table.model.rows)  # type: ignore[union-attr]
        told(stage, 1, stable_version=1)
        assert stage.version == 1
        until(lambda: "item-late" in stage.table.model.rows)  # type: ignore[union-attr]
        assert stage.version == 1
