"""The scorer's loop over a real registry: what is announced is served, what is bad refused, what is served goes on."""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from learnt_chain import Publications
from prometheus_client import CollectorRegistry
from scorer_stage import ITEMS, RecordingRegistry, Stage, until
from structlog.testing import capture_logs
from tiny_model import tiny_encoder
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import BuildStoppedError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.modalities import item_vectors
from peft_adapters.ranking.next_adapter_vectors import NextAdapterVectors
from peft_adapters.registry.bundle import read_manifest
from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.model_builder import build_model
from services.metrics.scorer import ScorerMetrics
from services.scorer import model_factory
from services.scorer.next_adapter_encoder import NextAdapterEncoder
from streams.decode import ItemRemoved


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def stage(tmp_path: Path, encoder: Encoder) -> Stage:
    return Stage(tmp_path, encoder)


def test_it_serves_what_is_announced_and_fetches_only_what_it_lacks(stage: Stage) -> None:
    with stage.running():
        stage.publish(1, full=True)
        until(lambda: stage.version == 1)
        for version in (2, 3):
            stage.publish(version, announce=version == 3)
        until(lambda: stage.version == 3)
    assert stage.registry.fetched == [1, 2, 3]
    assert stage.count("swapped") == 2
    assert stage.series.get_sample_value("headwater_adapter_version") == 3
    assert stage.series.get_sample_value("headwater_items") == 12
    assert stage.series.get_sample_value("headwater_swap_seconds_count") == 2
    assert not list((stage.directory / "bundles" / "home").iterdir())  # nothing is left to pile up


def test_only_the_newest_announcement_counts(stage: Stage) -> None:
    stage.publish(1, full=True)
    stage.publish(2)
    stage.publish(3, full=True)
    with stage.running():
        until(lambda: stage.version == 3)
    assert stage.registry.fetched == [3]
    assert stage.count("swapped") == 1


def test_with_nothing_announced_it_begins_with_the_registry_s_latest(stage: Stage) -> None:
    stage.publish(1, full=True, announce=False)
    with stage.running():
        until(lambda: stage.version == 1)


def test_what_is_served_is_not_built_again_when_it_is_announced_again(stage: Stage) -> None:
    manifest = stage.publish(1, full=True)
    with stage.running():
        until(lambda: stage.version == 1)
        model = stage.table.model
        stage.announcements.update_latest(manifest)
        stage.publish(2)
        until(lambda: stage.version == 2)
    assert model is not None
    assert stage.registry.fetched == [1, 2]


def test_an_older_version_that_is_announced_is_gone_back_to(stage: Stage) -> None:
    first = stage.publish(1, full=True)
    stage.publish(2)
    with stage.running():
        until(lambda: stage.version == 2)
        stage.announcements.update_latest(first)
        until(lambda: stage.version == 1)


def tampered(directory: Path) -> None:
    file = directory / "heads.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut_short(directory: Path) -> None:
    file = directory / "counters.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [tampered, cut_short])
def test_a_damaged_bundle_is_refused_and_the_next_good_one_served(stage: Stage, damage: Callable[[Path], None]) -> None:
    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        until(lambda: stage.version == 1)
        bad = stage.publish(2, announce=False)
        damage(stage.directory / "registry" / "home" / "00000002")
        stage.announcements.update_latest(bad)
        until(lambda: stage.count("refused") == 1)
        assert stage.version == 1
        stage.publish(3)  # builds on what is damaged
        until(lambda: stage.count("refused") == 2)
        assert stage.version == 1
        stage.publish(4, full=True)
        until(lambda: stage.version == 4)
    refusals = [entry for entry in logs if entry["event"] == "adapter_refused"]
    assert [entry["version"] for entry in refusals] == [2, 3]
    assert all("expected" in entry["problem"] and entry["exc_info"] is None for entry in refusals)


def test_an_adapter_of_another_base_is_refused(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running():
        until(lambda: stage.version == 1)
        other = Publications(stage.directory / "other", tiny_encoder(lora_layers=2))
        other.learner.add_items(ITEMS)
        directory = other.full(2)
        stage.registry.publish(directory, read_manifest(directory))
        stage.announcements.update_latest(read_manifest(directory))
        until(lambda: stage.count("refused") == 1)
        assert stage.version == 1


def test_an_unreadable_announcement_is_refused_and_others_scenarios_are_passed_over(stage: Stage) -> None:
    assert stage.announcements.wait(0) == "home"  # looked at once in any case
    stage.announcements.read_record(b"home", b"{}")
    assert stage.count("refused") == 1
    stage.announcements.read_record(b"search", b"{}")
    stage.announcements.read_record(None, b"{}")
    stage.announcements.read_record(b"home", None)
    assert stage.count("refused") == 1
    assert stage.announcements.wait(0) is None


def test_a_registry_that_is_away_is_said_once_and_asked_again(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        until(lambda: stage.version == 1)
        manifest = stage.publish(2, announce=False)
        stage.registry.away, stage.registry.asked = True, 0
        stage.announcements.update_latest(manifest)
        until(lambda: stage.registry.asked >= 3)
        assert stage.version == 1
        assert "registry does not answer" in stage.health.problems()["registry"]
        stage.registry.away = False
        until(lambda: stage.version == 2)
        until(lambda: "registry" not in stage.health.problems())
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["registry_lost"]
    assert stage.count("refused") == 0


def test_a_registry_begun_anew_under_the_same_numbers_is_taken_from_its_full_bundle(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running():
        until(lambda: stage.version == 1)
        old = stage.table.model
        stage.publications = stage.new_publications("again")
        stage.registry = RecordingRegistry(str(stage.directory / "registry-again"))
        stage.bundles._registry = stage.registry
        stage.publications.learn(16)
        stage.publish(1, full=True, announce=False)
        stage.publish(2)
        until(lambda: stage.version == 2)
    assert old is not None
    assert stage.registry.fetched == [1, 2]


def test_a_delta_that_does_not_fit_what_is_served_is_built_from_the_full_bundle(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        until(lambda: stage.version == 1)
        model = stage.table.model
        assert model is not None
        slot = stage.table.open("home")
        slot.replace(model, replace(model, state=replace(model.state, item_ids=["item-0"])))
        stage.publish(2)
        until(lambda: stage.version == 2)
    assert stage.registry.fetched == [1, 2, 1, 2]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["delta_does_not_fit"]
    assert stage.count("refused") == 0


def test_a_fault_of_ours_in_a_build_keeps_what_is_served_and_the_loop(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        until(lambda: stage.version == 1)
        with monkeypatch.context() as patch:
            patch.setattr(model_factory, "build_model", broken)
            stage.publish(2)
            until(lambda: stage.count("refused") == 1)
        assert stage.version == 1
        stage.publish(3)
        until(lambda: stage.version == 3)
    refusal = next(entry for entry in logs if entry["event"] == "adapter_refused")
    assert isinstance(refusal["exc_info"], ZeroDivisionError)


def test_items_that_come_between_two_adapters_can_be_ranked(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running():
        until(lambda: stage.version == 1)
        stage.item("item-late", "a vase")
        until(lambda: "item-late" in stage.table.model.rows)  # type: ignore[union-attr]
        assert stage.version == 1
        stage.publish(2)
        until(lambda: stage.version == 2)
        assert "item-late" in stage.table.model.rows  # type: ignore[union-attr]
    assert stage.series.get_sample_value("headwater_items") == 13
    assert stage.count("swapped") == 2


def test_a_vector_of_another_length_than_the_adapter_takes_is_counted_and_said(stage: Stage) -> None:
    item_id, text = ITEMS[0]
    stage.publications.learner.add_items([(item_id, text, item_vectors({"image": [1.0, 2.0]}))])
    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        stage.item(item_id, text, vectors={"image": [1.0, 2.0, 3.0]})
        until(lambda: stage.series.get_sample_value("headwater_unused_vectors") == 1)
        stage.item(item_id, text, vectors={"image": [1.0, 2.0]})
        until(lambda: stage.series.get_sample_value("headwater_unused_vectors") == 0)
    (line,) = (line for line in logs if line["event"] == "vectors_not_used")
    assert (line["vectors"], line["why"]) == (1, "another length than the adapter takes")


def test_it_says_what_it_still_waits_for(stage: Stage) -> None:
    assert "catalogue" in (stage.health.missing() or "")
    with stage.running():
        until(lambda: "no adapter" in (stage.health.missing() or ""))
        stage.publish(1, full=True)
        until(lambda: "events are still being read" in (stage.health.missing() or ""))
        stage.reader.caught_up.set()
        until(lambda: stage.health.missing() is None)


def test_items_that_a_full_disk_kept_out_come_in_once_there_is_room(stage: Stage) -> None:
    stage.cache.failures = 3
    stage.publish(1, full=True)
    with capture_logs() as logs, stage.running():
        until(lambda: stage.series.get_sample_value("headwater_items") == 12)
    failed = [entry for entry in logs if entry["event"] == "items_not_encoded"]
    assert [entry["items"] for entry in failed] == [12, 12, 12]
    assert stage.version == 1


def test_a_fault_of_ours_in_a_refresh_keeps_what_is_served_and_the_loop(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    stage.publish(1, full=True)
    with stage.running(), capture_logs() as logs:
        until(lambda: stage.version == 1)
        with monkeypatch.context() as patch:
            patch.setattr(model_factory, "refresh_model", broken)
            stage.item("item-late", "a vase")
            until(lambda: any(entry["event"] == "items_not_refreshed" for entry in logs))
        until(lambda: "item-late" in stage.table.model.rows)  # type: ignore[union-attr]
    assert stage.count("refused") == 0


def test_told_to_end_it_does_not_end_a_long_build_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object, stop: threading.Event, **__: object) -> None:
        assert stop.wait(30)
        raise BuildStoppedError("told to stop")

    monkeypatch.setattr(model_factory, "build_model", endless)
    stage.publish(1, full=True)
    with capture_logs() as logs, stage.running():
        until(lambda: stage.registry.fetched == [1])
    assert stage.version is None
    assert logs == []
    assert stage.count("refused") == 0


class TestAhead:
    @pytest.fixture
    def coming(self, stage: Stage) -> Stage:
        """Each adapter is announced for three versions before it is served."""
        stage.publications = Publications(stage.directory / "slow", lora_ahead_batches=3)
        stage.publications.learner.add_items(ITEMS)
        return stage

    def test_vectors_of_the_adapter_that_comes_are_made_before_its_version_does(
        self, coming: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.scorer.next_adapter_encoder.TEXTS_A_ROUND", 5)
        made: list[int] = []
        vectors = Catalogue.vectors

        def count(self: Catalogue, suffix: object, rows: Sequence[int]) -> Tensor:
            if self is coming.catalogue:
                made.append(len(rows))
            return vectors(self, suffix, rows)  # type: ignore[arg-type]

        monkeypatch.setattr(Catalogue, "vectors", count)
        with coming.running():
            coming.publish(1, full=True)
            until(lambda: coming.version == 1 and made == [12, 5, 5, 2])  # its own, then those of the next
            before = coming.table.model
            coming.publish(2)
            coming.publish(3)
            until(lambda: coming.version == 3)
            model = coming.table.model
        assert before is not None
        assert model is not None
        assert model.suffix is not before.suffix
        assert made[:4] == [12, 5, 5, 2]
        assert sum(made[4:]) <= 12  # nothing for this version; the next adapter's may have begun

    def test_every_scenario_has_its_share_of_a_round(self, coming: Stage, encoder: Encoder) -> None:
        coming.publish(1, full=True)
        bundle = coming.publications.read(coming.directory / "slow" / "1-full")
        catalogue = Catalogue(coming.cache)
        catalogue.upsert(ITEMS)
        model = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
        ahead = NextAdapterEncoder(encoder, catalogue)
        for scenario in ("home", "search"):
            ahead.start(scenario, model)
        assert ahead.has_work
        ahead.encode_some()
        made = [ahead.vectors(scenario) for scenario in ("home", "search")]
        assert [len(one.texts) for one in made if one is not None] == [12, 12]
        assert not ahead.has_work
        ahead.start("home", model)
        assert ahead.vectors("home") is made[0]  # the same adapter: what was made is kept
        ahead.drop("home")
        assert ahead.vectors("home") is None

    def test_for_a_pinned_scenario_nothing_is_made_ahead(self, coming: Stage) -> None:
        with coming.running():
            coming.publish(1, full=True)
            until(lambda: coming.worker._next_adapter.vectors("home") is not None)
            coming.announcements.update_rollout(Rollout(scenario="home", revision=1, stable_version=1))
            until(lambda: coming.worker._next_adapter.vectors("home") is None)

    def test_a_disk_that_fails_meanwhile_leaves_it_to_the_version_itself(
        self, coming: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        advance = NextAdapterVectors.advance

        def fail(self: NextAdapterVectors, catalogue: Catalogue, most: int) -> bool:
            if catalogue is coming.catalogue:
                raise sqlite3.OperationalError("database or disk is full")
            return advance(self, catalogue, most)  # the updater's

        monkeypatch.setattr(NextAdapterVectors, "advance", fail)
        with coming.running(), capture_logs() as logs:
            coming.publish(1, full=True)
            until(lambda: any(entry["event"] == "texts_not_made_ahead" for entry in logs))
        assert coming.version == 1


def test_topics_that_cannot_be_read_are_problems_and_metrics_by_name(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    metrics = ScorerMetrics(registry)
    metrics.declare_topics(stage.reader.topics)
    unreadable = {"headwater.clicks/3": "it has no leader", "shop.web": "it does not exist"}
    monkeypatch.setattr(stage.reader, "problem", lambda: None)
    monkeypatch.setattr(stage.reader, "topic_problems", lambda: unreadable)
    assert stage.health.problems() == {
        "kafka/headwater.clicks/3": "it has no leader",
        "kafka/shop.web": "it does not exist",
    }
    metrics.show_problems(stage.health.problems())
    readable = {
        sample.labels["topic"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "headwater_topic_readable"
    }
    assert {topic for topic, value in readable.items() if value == 0} == {"headwater.clicks", "shop.web"}
    assert readable["headwater.items"] == 1
    unreadable.clear()
    metrics.show_problems(stage.health.problems())
    assert registry.get_sample_value("headwater_topic_readable", {"topic": "shop.web"}) == 1
    assert registry.get_sample_value("headwater_dependency_available", {"dependency": "kafka"}) == 1


def test_a_catalogue_that_cannot_be_read_is_named_with_its_cause(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.reader.catalogue_read.clear()
    assert "is Kafka reachable" in (stage.health.missing() or "")
    monkeypatch.setattr(stage.reader, "catalogue_problem", lambda: "partition 2 of topic 'items' has no leader")
    assert stage.health.missing() == ("the catalogue has not been read yet; partition 2 of topic 'items' has no leader")


def test_a_catalogue_far_smaller_than_the_adapter_s_is_a_problem(stage: Stage) -> None:
    stage.publications.learner.add_items([(f"item-{number}", f"item {number}") for number in range(12, 25)])
    stage.publish(1, full=True)
    with stage.running():
        until(lambda: stage.version == 1)
        assert "the catalogue holds 12 of the 25 items" in stage.health.problems()["catalogue"]
        stage.item("item-12", "item 12")
        until(lambda: "catalogue" not in stage.health.problems())
        assert stage.series.get_sample_value("headwater_catalogue_items") == 13
        stage.items.take_in(ItemRemoved("item-12", ts=2_000_000_000_000))
        until(lambda: stage.series.get_sample_value("headwater_catalogue_items") == 12)


def test_with_another_secret_than_the_deployments_it_is_not_ready(tmp_path: Path, encoder: Encoder) -> None:
    stage = Stage(tmp_path, encoder, secret_fingerprint="a" * 32)
    with stage.running():
        stage.publish(1, full=True)
        until(lambda: stage.version == 1)
        assert "privacy" not in stage.health.problems(), "nothing says which secret the deployment has"
        stage.reader.secret_fingerprint = "b" * 32
        missing = stage.health.missing()
        assert missing is not None
        assert missing.startswith("`privacy.secret` must be the same in all processes")
        assert "HEADWATER_PRIVACY__SECRET" in missing
        assert stage.health.problems()["privacy"] == missing
        stage.reader.secret_fingerprint = "a" * 32
        assert "privacy" not in stage.health.problems()
        model = stage.table.model
        assert model is not None
        made_elsewhere = replace(model, manifest=model.manifest.model_copy(update={"secret_fingerprint": "c" * 32}))
        deployment = stage.table.deployments()["home"]
        stage.reader.secret_fingerprint = None
        stage.table.serve(replace(deployment, stable=made_elsewhere))
        assert "the adapter that is held" in stage.health.problems()["privacy"]


def test_a_catalogue_that_is_being_read_is_no_question_about_kafka(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.reader.catalogue_read.clear()
    monkeypatch.setattr(type(stage.reader), "is_reading", True)
    assert stage.health.missing() == "the catalogue has not been read yet; it is being read"
