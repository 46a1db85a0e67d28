"""Batches kept for LoRA: which, in what shape, and when they are dropped."""

from dataclasses import replace

import numpy as np
import torch
from tiny_model import paired_stream, tiny_encoder, tiny_learner

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lora_replay import LoraBatch, LoraReplay, lora_batch
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.settings import GateSettings, LearnerSettings

SETTINGS = LearnerSettings(lora_every_events=1, lora_learning_rate=0.01, negatives=12, lora_items=16)


def small_batch(number: int) -> LoraBatch:
    rows = np.array([number])
    large = torch.full((2, 1, 1), number + 0.1)
    return LoraBatch(rows, torch.ones(1), rows, torch.zeros(1), large, large, rows, rows)


def learnt(batches: int, *, replay: int, encoder: Encoder | None = None) -> Learner:
    settings = SETTINGS.model_copy(update={"lora_replay_batches": replay})
    learner = tiny_learner(settings, items=30, encoder=encoder)
    for number in range(batches):
        learner.learn(learner.observe(paired_stream(20, items=30, seed=number)))
    return learner


def kept(replay: LoraReplay) -> set[int]:
    return {int(value) for name, value in replay.state_dict().items() if name.endswith(".items")}


def test_every_batch_is_kept_with_the_same_chance() -> None:
    counts = np.zeros(12)
    for trial in range(600):
        replay, generator = LoraReplay(3), np.random.default_rng(trial)
        for number in range(12):
            replay.add(small_batch(number), generator)
        assert len(kept(replay)) == 3
        counts[list(kept(replay))] += 1
    spread = np.sqrt(600 * 0.25 * 0.75)
    assert float(np.abs(counts - 150).max()) < 4 * spread


def test_what_is_drawn_is_what_was_kept_in_half_precision() -> None:
    replay, generator = LoraReplay(2), np.random.default_rng(0)
    assert replay.draw(generator) == []
    replay.add(small_batch(7), generator)
    (drawn,) = replay.draw(generator)
    assert drawn.items.tolist() == drawn.live_rows.tolist() == [7]
    assert drawn.counter_features.dtype == torch.float32
    assert torch.equal(drawn.counter_features, torch.full((2, 1, 1), 7.1).half().float())


def test_nothing_is_kept_where_there_is_no_room() -> None:
    replay = LoraReplay(0)
    replay.add(small_batch(1), np.random.default_rng(0))
    assert kept(replay) == set()


def test_a_batch_cut_down_has_the_features_of_its_candidates() -> None:
    learner = tiny_learner(SETTINGS, items=30)
    batch = learner.observe(paired_stream(20, items=30, seed=0))
    candidates = np.union1d(batch.items, batch.candidates[:3])
    whole = lora_batch(batch, candidates, candidates)
    sampled = replace(batch, columns=batch.candidates, counter_features=batch.counter_features[:, :, batch.candidates])
    again = lora_batch(sampled, candidates, candidates)
    assert torch.equal(whole.counter_features, batch.counter_features[:, :, candidates])
    assert torch.equal(again.counter_features, whole.counter_features)
    assert whole.log_expected.shape == (len(candidates),)


def test_a_step_adds_the_gradient_of_a_kept_batch() -> None:
    one, other = learnt(1, replay=4), learnt(1, replay=0)
    assert all(torch.equal(value, other.encoder.lora_state()[name]) for name, value in one.encoder.lora_state().items())
    batch = one.observe(paired_stream(20, items=30, seed=1))
    steps, global_preference = one.lora_steps, one.positives.global_preference
    first = steps.replay.draw(np.random.default_rng(0))[0]  # the only one
    new = lora_batch(batch, *steps._rows(batch, np.random.default_rng([one.settings.seed, one.batches_learned, 1])))
    parameters = one.encoder.lora_parameters()
    expected = [
        sum(parts)
        for parts in zip(
            *(torch.autograd.grad(steps._loss(part, global_preference), parameters) for part in (new, first)),
            strict=True,
        )
    ]
    steps._add_gradients(batch, global_preference, (one.settings.seed, one.batches_learned))
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_nothing_from_before_is_replayed_after_a_drift_a_rollback_or_when_a_shopper_is_forgotten() -> None:
    learner = learnt(2, replay=4, encoder=tiny_encoder())
    gate = Gate(learner, PrequentialEvaluator(), GateSettings(refusals_before_rollback=1))
    drops = (learner.restart_heads, lambda: learner.forget("user-1"), lambda: gate._live.roll_back(learner))
    for drop in drops:
        learner.learn(learner.observe(paired_stream(20, items=30, seed=3)))
        assert kept_batches(learner) > 0
        drop()
        assert kept_batches(learner) == 0


def kept_batches(learner: Learner) -> int:
    return sum(name.endswith(".items") for name in learner.lora_steps.replay.state_dict())
