"""A batch whose loss is not finite moves nothing and is counted; titles of all kinds are learnt."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import Bought, Listed, paired_stream, tiny_learner

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import LearnerSettings


@pytest.fixture
def learner() -> Learner:
    learner = tiny_learner(LearnerSettings(lora_every_events=1), items=24)
    learner.learn(learner.observe(paired_stream(60, items=24, seed=0)))
    return learner


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    """What learning moves; what scores follow from is blended again with every count."""
    return {
        name: value.clone()
        for name, value in learner.learned_tensors().items()
        if name not in ("ranker/heads", "ranker/global_preference")
    }


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_batch_whose_loss_is_not_finite_moves_nothing_and_is_counted(learner: Learner, spoilt: float) -> None:
    before, counted = _weights(learner), learner.events_learned
    batch = learner.observe(paired_stream(60, items=24, seed=1))
    weight = batch.weight.clone()
    weight[7] = spoilt
    assert math.isnan(learner.learn(replace(batch, weight=weight)))
    assert all(torch.equal(value, before[name]) for name, value in _weights(learner).items())
    assert learner.events_learned == counted + len(batch) == int(learner.ranker.counters.events.sum())
    loss = learner.learn(learner.observe(paired_stream(60, items=24, seed=2)))
    assert math.isfinite(loss)
    assert any(not torch.equal(value, before[name]) for name, value in _weights(learner).items())


def test_lists_whose_loss_is_not_finite_move_nothing_and_are_counted(learner: Learner) -> None:
    before, shown = _weights(learner), learner.ranker.counters.shown.sum()
    lists = [Listed("ann", 10_000_000, ("item-1", "item-2", "item-3"), (True, False, False))]
    batch = learner.observe_lists(lists)
    spoilt = replace(batch, counter_features=torch.full_like(batch.counter_features, math.nan))
    assert math.isnan(learner.learn_lists(spoilt))
    assert all(torch.equal(value, before[name]) for name, value in _weights(learner).items())
    assert learner.ranker.counters.shown.sum() == shown + 3
    assert math.isfinite(learner.learn_lists(learner.observe_lists(lists)))


def test_a_gradient_of_lora_that_is_not_finite_is_left_out(learner: Learner) -> None:
    before = learner.encoder.lora_state()
    for parameter in learner.encoder.lora_parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    learner.lora_steps.optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in learner.encoder.lora_state().items())
    learner.learn(learner.observe(paired_stream(60, items=24, seed=2)))
    assert all(bool(value.isfinite().all()) for value in learner.encoder.lora_state().values())


@pytest.mark.parametrize("title", ["", "mug " * 2_500, "\N{ZERO WIDTH SPACE}"])
def test_a_title_of_no_word_or_of_thousands_is_learnt_as_any_other(learner: Learner, title: str) -> None:
    learner.add_items([("odd", title)])
    loss = learner.learn(learner.observe([Bought("ann", None, "item-1", 1), Bought("ann", None, "odd", 2)]))
    assert math.isfinite(loss)
    assert bool(learner.ranker.vectors("candidate").isfinite().all())


def test_a_catalogue_of_one_item_is_learnt() -> None:
    learner = tiny_learner(LearnerSettings(lora_every_events=1), items=1)
    for index in range(3):
        batch = learner.observe([Bought(f"user-{index}", None, "item-0", index)])
        assert learner.judge(batch).shape == (1, 1)
        assert learner.learn(batch) == 0.0  # there is nothing to be told apart
    assert learner.events_learned == 3
