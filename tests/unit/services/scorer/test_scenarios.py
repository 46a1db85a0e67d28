"""Scenarios on one worker: loaded when asked for, pinned or let go, each by its own adapter over one encoder."""

from pathlib import Path

import pytest
from learnt_chain import Publications
from scorer_stage import ITEMS, Stage, until
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.registry.bundle import read_manifest, write_bundle
from peft_adapters.registry.manifest import Manifest


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def stage(tmp_path: Path, encoder: Encoder) -> Stage:
    return Stage(tmp_path, encoder, max_scenarios=2)


def published(stage: Stage, scenario: str) -> Manifest:
    """A scenario with one full version of its own."""
    made = Publications(stage.directory / scenario)
    made.learner.add_items(ITEMS)
    made.learn(16 + len(scenario))
    directory = stage.directory / scenario / "bundle"
    write_bundle(
        directory,
        groups=made.learner.bundle_groups(full=True),
        adapter_config=made.learner.encoder.adapter_config(),
        item_ids=made.learner.catalogue.ids,
        scenario=scenario,
        version=1,
        kind="full",
        parent=None,
        snapshot=1,
        base_digest=made.learner.encoder.base_digest,
        offsets={},
        watermark_ms=1,
        published_at_ms=1,
        events_learned=1,
    )
    manifest = read_manifest(directory)
    stage.registry.publish(directory, manifest)
    return manifest


def held(stage: Stage) -> set[str]:
    return {name for name, deployment in stage.table.deployments().items() if deployment.stable is not None}


def shown(stage: Stage, scenario: str) -> float | None:
    return stage.series.get_sample_value("headwater_arm_version", {"scenario": scenario, "arm": "stable"})


def test_a_scenario_is_loaded_when_asked_for_and_goes_when_others_are(stage: Stage) -> None:
    stage.publish(1, full=True)
    for scenario in ("search", "ads"):
        published(stage, scenario)
    ask = stage.worker.scenarios.request
    with stage.running():
        until(lambda: held(stage) == {"home"})
        assert not ask("search")  # nobody has announced it: the registry is asked, and a later request finds it
        until(lambda: held(stage) == {"home", "search"})
        assert ask("search")
        until(lambda: shown(stage, "search") == 1)
        ask("ads")
        until(lambda: held(stage) == {"home", "ads"})
        until(lambda: shown(stage, "search") is None)
        ask("search")
        until(lambda: held(stage) == {"home", "search"})
    home, search = (stage.table.deployments()[name].models["stable"] for name in ("home", "search"))
    assert home.manifest.scenario == "home"
    assert search.manifest.scenario == "search"
    assert not home.state.heads.equal(search.state.heads)
    assert stage.count("refused") == 0


def test_of_a_name_without_a_publication_nothing_is_held(stage: Stage) -> None:
    stage.publish(1, full=True)
    with stage.running():
        until(lambda: held(stage) == {"home"})
        for _ in range(2):
            assert not stage.worker.scenarios.request("no-such")
            until(lambda: "no-such" not in stage.announcements.followed())
        for number in range(100):
            assert not stage.worker.scenarios.request(f"made-up-{number}")
        assert len(stage.announcements.followed()) <= 17
        until(lambda: stage.announcements.followed() == ["home"])
    assert held(stage) == {"home"}


def test_an_announced_scenario_is_known_to_come(stage: Stage) -> None:
    stage.publish(1, full=True)
    published(stage, "search")
    stage.announcements.read_record(b"search", b"{}")  # not followed: that there is something counts, not what
    with stage.running():
        until(lambda: held(stage) == {"home"})
        assert stage.worker.scenarios.request("search")
        until(lambda: held(stage) == {"home", "search"})
        stage.item("item-late", "a vase")
        until(
            lambda: all(
                "item-late" in deployment.models["stable"].rows for deployment in stage.table.deployments().values()
            )
        )
