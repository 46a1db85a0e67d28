"""The serving table: slots by scenario, and deployments that are replaced as a whole."""

from dataclasses import dataclass, field
from typing import Any, cast

from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment
from services.scorer.refusals import Refusals
from services.scorer.rollout_applier import RolloutApplier
from services.scorer.serving_table import ServingTable


@dataclass
class Manifest:
    digest: str


@dataclass
class Model:
    """As much of a served model as a slot compares."""

    version: int
    manifest: Manifest = field(default_factory=lambda: Manifest("a" * 64))

    def __len__(self) -> int:
        return 10


class Interrupt:
    """Counts how often a build was interrupted."""

    def __init__(self) -> None:
        self.times = 0

    def set(self) -> None:
        self.times += 1


def model(version: int) -> ServedModel:
    return cast(ServedModel, Model(version))


def test_a_scenario_without_a_slot_serves_nothing() -> None:
    table = ServingTable("home")
    assert table.model is None
    assert table.deployment("home") is None
    table.open("home")
    assert table.model is None
    assert table.deployments() == {"home": Deployment(Rollout(scenario="home"))}


def test_a_closed_scenario_is_gone_and_its_deployment_still_whole() -> None:
    table = ServingTable("home")
    table.serve_model(model(1))
    deployment = table.deployment("home")
    table.close("home")
    assert table.deployment("home") is None
    assert deployment is not None
    assert deployment.stable == model(1)


def test_every_swap_is_reported_with_what_was_served_before() -> None:
    swaps: list[tuple[int | None, int | None]] = []

    def version(deployment: Deployment) -> int | None:
        return None if deployment.stable is None else deployment.stable.version

    table = ServingTable("home", on_swap=lambda before, now: swaps.append((version(before), version(now))))
    table.serve_model(model(1))
    table.serve_model(model(2))
    assert swaps == [(None, 1), (1, 2)]
    assert table.slot("home") is table.open("home")


def test_a_rollout_to_a_held_version_interrupts_no_build_and_another_one_does() -> None:
    table, interrupt = ServingTable("home"), Interrupt()
    applier = RolloutApplier(table, Refusals(), cast(Any, interrupt))
    applier.apply(Rollout(scenario="home", revision=1, stable_version=1))  # no slot yet: nothing to apply it to
    assert interrupt.times == 0
    table.serve_model(model(1))
    table.serve_model(model(2))
    applier.apply(Rollout(scenario="home", revision=2, stable_version=1))
    assert table.model == model(1)
    assert interrupt.times == 0
    applier.apply(Rollout(scenario="home", revision=3, stable_version=3))
    assert table.model == model(1)
    assert interrupt.times == 1
