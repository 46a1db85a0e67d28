"""The slot of a scenario: what is held is flipped at once, what is not is named, and little is kept."""

from dataclasses import replace
from typing import Any, cast

import pytest
from small_bundle import write_small_bundle

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.rollout import CANARY, SHADOW, STABLE, Canary, Rollout, Shadow
from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment, in_canary
from services.scorer.model_slot import ModelSlot, Target


class Standing:
    """As much of a served model as a slot looks at."""

    def __init__(self, manifest: Manifest, rows: int) -> None:
        self.manifest, self.version, self._rows = manifest, manifest.version, rows

    def __len__(self) -> int:
        return self._rows


@pytest.fixture
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Manifest]:
    directory = tmp_path_factory.mktemp("bundles")
    return {version: write_small_bundle(directory / str(version), version) for version in range(1, 6)}


class Table:
    """A slot, and the deployments it showed."""

    def __init__(self, manifests: dict[int, Manifest], kept_rows: int = 30) -> None:
        self.manifests, self.shown = manifests, list[Deployment]()
        self.slot = ModelSlot("home", kept_rows=kept_rows, on_swap=lambda _, now: self.shown.append(now))

    def model(self, version: int) -> ServedModel:
        return cast(ServedModel, Standing(self.manifests[version], rows=10))

    def follow(self, rollout: Rollout | None = None, latest: int | None = None) -> list[int]:
        """Obey, and build what is missing; the versions that were built."""
        missing = self.slot.apply(rollout, self.manifests[latest] if latest else None)
        for target in missing:
            assert self.slot.install(target, self.model(target.version))
        return [target.version for target in missing]

    @property
    def versions(self) -> dict[str, int]:
        return {arm: model.version for arm, model in self.slot.deployment.models.items()}


@pytest.fixture
def table(manifests: dict[int, Manifest]) -> Table:
    return Table(manifests)


def rollout(revision: int, **fields: Any) -> Rollout:
    return Rollout(scenario="home", revision=revision, **fields)


def test_without_a_rollout_the_latest_is_followed(table: Table) -> None:
    assert table.follow(latest=1) == [1]
    assert table.follow(latest=1) == []
    assert table.follow(latest=2) == [2]
    assert table.versions == {STABLE: 2}


def test_a_pinned_version_stays_whatever_is_published(table: Table) -> None:
    table.follow(rollout(1, stable_version=2), latest=3)
    assert table.versions == {STABLE: 2}
    assert table.follow(latest=4) == []
    assert table.versions == {STABLE: 2}
    assert table.follow(rollout(2)) == [4]


def test_going_back_to_a_version_that_is_kept_is_a_flip(table: Table) -> None:
    for version in (1, 2, 3):
        table.follow(latest=version)
    assert table.follow(rollout(1, stable_version=2)) == []
    assert table.versions == {STABLE: 2}
    assert table.follow(rollout(2)) == []
    assert table.versions == {STABLE: 3}


def test_no_more_is_kept_than_there_is_room_for(manifests: dict[int, Manifest]) -> None:
    table = Table(manifests, kept_rows=20)
    for version in (1, 2, 3, 4):
        table.follow(latest=version)
    assert [model.version for model in table.slot.models()] == [4, 3, 2]
    bare = Table(manifests, kept_rows=9)
    for version in (1, 2):
        bare.follow(latest=version)
    assert [model.version for model in bare.slot.models()] == [2]


def test_until_its_model_is_built_a_canary_answers_nobody_and_a_pin_keeps_what_was(table: Table) -> None:
    table.follow(latest=1)
    missing = table.slot.apply(rollout(1, stable_version=2, canary=Canary(version=3, percent=100)), None)
    assert missing == [Target(STABLE, 2), Target(CANARY, 3)]
    assert table.versions == {STABLE: 1}
    assert table.slot.deployment.arm_of("ann") == STABLE
    assert table.slot.install(missing[1], table.model(3))
    assert table.slot.deployment.arm_of("ann") == CANARY
    assert table.slot.deployment.arm_of(None) == STABLE


def test_a_canary_of_the_latest_follows_it_without_a_pause(table: Table) -> None:
    table.follow(latest=1)
    assert table.follow(rollout(1, stable_version=1, canary=Canary(percent=5)), latest=2) == [2]
    assert table.versions == {STABLE: 1, CANARY: 2}
    (target,) = table.slot.apply(None, table.manifests[3])
    assert table.versions == {STABLE: 1, CANARY: 2}
    assert table.slot.install(target, table.model(3))
    assert table.versions == {STABLE: 1, CANARY: 3}


def test_what_was_built_for_an_arm_that_is_gone_goes_nowhere(table: Table) -> None:
    table.follow(latest=1)
    (target,) = table.slot.apply(rollout(1, stable_version=1, shadow=Shadow(version=2)), None)
    assert target.arm == SHADOW
    table.slot.apply(rollout(2, stable_version=1), None)
    assert not table.slot.install(target, table.model(2))
    assert table.versions == {STABLE: 1}


def test_promoting_and_ending_a_canary_are_flips(table: Table) -> None:
    table.follow(latest=1)
    begun = rollout(1, stable_version=1, canary=Canary(version=2, percent=20))
    assert table.follow(begun) == [2]
    promoted = begun.promoted(latest=2)
    assert table.slot.apply(promoted, None) == []
    assert table.versions == {STABLE: 2}
    assert table.slot.apply(promoted.pinned(1), None) == []
    assert table.versions == {STABLE: 1}


def test_the_same_number_with_other_content_is_another_version(table: Table, tmp_path: Any) -> None:
    table.follow(latest=1)
    again = write_small_bundle(tmp_path / "again", 1, seed=5)
    assert [target.version for target in table.slot.apply(None, again)] == [1]


def test_a_renewed_model_takes_the_place_of_the_one_before_everywhere(table: Table) -> None:
    table.follow(latest=1)
    table.follow(latest=2)
    old = table.slot.models()
    for model in old:
        table.slot.replace(model, table.model(model.version))
    assert [model.version for model in table.slot.models()] == [2, 1]
    assert not {id(model) for model in old} & {id(model) for model in table.slot.models()}


def test_a_canary_s_share_is_drawn_evenly_and_a_larger_one_keeps_the_smaller() -> None:
    shoppers = [f"shopper-{number}" for number in range(4_000)]
    ten = rollout(1, stable_version=1, canary=Canary(version=2, percent=10))
    assert ten.canary is not None
    thirty = ten.model_copy(update={"canary": ten.canary.model_copy(update={"percent": 30.0})})
    other = ten.model_copy(update={"canary": ten.canary.model_copy(update={"version": 3})})
    drawn = {shopper for shopper in shoppers if in_canary(shopper, ten)}
    assert 0.08 < len(drawn) / len(shoppers) < 0.12  # three standard errors are 0.014
    assert drawn < {shopper for shopper in shoppers if in_canary(shopper, thirty)}
    both = drawn & {shopper for shopper in shoppers if in_canary(shopper, other)}
    assert len(both) < len(drawn) / 4
    assert not any(in_canary(shopper, rollout(1)) for shopper in shoppers)


def test_a_lineup_is_replaced_whole(table: Table) -> None:
    table.follow(latest=1)
    before = table.slot.deployment
    table.follow(latest=2)
    assert before.stable is not None
    assert before.stable.version == 1
    with pytest.raises(AttributeError):
        before.stable = None  # type: ignore[misc]
    assert replace(before).scenario == "home"
