"""The contract checks: they pass for our own parts, and each promise has an implementation that breaks it."""

import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_learner

import headwater
from peft_adapters.checks import LEARNER_CHECKS
from peft_adapters.errors import ContractError
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.settings import LearnerSettings

EXAMPLE = Path(__file__).parents[3] / "examples" / "08_check_your_learner.py"
Popularity: Any = runpy.run_path(str(EXAMPLE))["PopularityLearner"]


def our_learner() -> Any:
    return tiny_learner(
        LearnerSettings(lora_every_events=1, lora_refresh_steps=2, lora_learning_rate=0.01, negatives=20)
    )


def test_our_learner_keeps_the_contract() -> None:
    headwater.check_learner(our_learner)


class LearnsWhileItJudges(Popularity):  # type: ignore[misc]
    def judge(self, batch: list[str]) -> Any:
        scores = super().judge(batch)
        self.counts.update(batch)
        return scores


class LooksAhead(Popularity):  # type: ignore[misc]
    def judge(self, batch: list[str]) -> Any:
        scores = super().judge(batch)
        return scores + torch.tensor([[float(batch.count(item_id)) for item_id in self.items]])


class RollsDice(Popularity):  # type: ignore[misc]
    def learn(self, batch: list[str]) -> Any:
        self.counts["dice"] += int(torch.randint(10**6, ()))
        return super().learn(batch)


class Forgets(Popularity):  # type: ignore[misc]
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({**state, "counts": {}})


class HasNoScoreForNewItems(Popularity):  # type: ignore[misc]
    def judge(self, batch: list[str]) -> Any:
        scores = super().judge(batch)
        scores[:, [item_id == "item-new" for item_id in self.items]] = float("nan")
        return scores


class TakesAnything(Popularity):  # type: ignore[misc]
    def observe(self, examples: Sequence[Any]) -> list[str]:
        return [event.item_id for event in examples]


class KnowsTheAnswer(Popularity):  # type: ignore[misc]
    def judge(self, batch: list[str]) -> Any:
        scores = super().judge(batch)
        for row, item_id in enumerate(batch):
            scores[row, self.items.index(item_id)] += 10**6
        return scores


BROKEN = {
    "judging_changes_nothing": LearnsWhileItJudges,
    "events_are_judged_by_what_came_before": LooksAhead,
    "the_same_stream_gives_the_same_learner": RollsDice,
    "a_restored_learner_goes_on_bit_for_bit": Forgets,
    "a_new_item_can_be_ranked_and_learnt": HasNoScoreForNewItems,
    "an_unknown_item_is_refused": TakesAnything,
    "nothing_beats_chance_on_random_items": KnowsTheAnswer,
}


@pytest.mark.parametrize("check", LEARNER_CHECKS, ids=lambda check: check.__name__)
def test_each_promise_is_kept_by_the_example_and_broken_by_one_that_breaks_it(check: Any) -> None:
    check(Popularity)
    with pytest.raises(ContractError):
        check(BROKEN[check.__name__])


def test_a_directory_holds_a_registry(tmp_path: Path) -> None:
    headwater.check_registry(str(tmp_path / "registry"))
    headwater.check_registry(f"memory://{tmp_path.name}")


def test_a_store_that_loses_versions_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterRegistry, "versions", lambda self, scenario: [1, 3])
    with pytest.raises(ContractError, match="published versions are listed"):
        headwater.check_registry(str(tmp_path / "registry"))


def test_a_learner_without_a_method_is_named_with_it() -> None:
    with pytest.raises(ContractError, match=r"a learner has the methods add_items, .* \(lacks add_items, observe"):
        headwater.check_learner(object)  # type: ignore[arg-type]


def test_a_learner_in_place_of_its_class_is_refused() -> None:
    with pytest.raises(TypeError, match="`make` must return a new learner when called, got PopularityLearner"):
        headwater.check_learner(Popularity())
