"""The trial of the adapter: when it is applied, how often LoRA steps, and what it leaves in bundles and states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Bought, paired_stream, state_bytes, tiny_learner, titled

from peft_adapters.learning import lora_steps
from peft_adapters.learning.adapter_weights import is_base, scaled
from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lora_trial import JudgedEvents, LoraTrial, judged_events
from peft_adapters.lifecycle.checkpoint import load_checkpoint, save_checkpoint
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.settings import LearnerSettings

ITEMS = 24
SETTINGS = LearnerSettings(
    lora_trial=True, lora_every_events=1, lora_refresh_steps=1, lora_ahead_batches=2, lora_learning_rate=0.02
)


def judged(trial: LoraTrial, mean: float, *, batches: int = 30, seed: int = 0) -> LoraTrial:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        trial.add(mean + 0.1 * torch.randn(24, generator=draw))
    return trial


def promising(trial: LoraTrial, errors: float) -> LoraTrial:
    """Add micro-batches whose mean gain is so many standard errors."""
    for place in range(16):
        trial.add(torch.full((24,), errors / 15**0.5 + (-1.0) ** place))
    return trial


def searches(number: int) -> list[Bought]:
    rng, titles = np.random.default_rng(number), dict(titled(ITEMS))
    rows = rng.integers(ITEMS, size=12).tolist()
    return [
        Bought(f"user-{n}", None, f"item-{row}", 60_000 * (12 * number + n), 1.0, titles[f"item-{row}"])
        for n, row in enumerate(rows)
    ]


def learnt(batches: int, settings: LearnerSettings = SETTINGS, *, learner: Learner | None = None) -> Learner:
    learner = learner or tiny_learner(settings, items=ITEMS)
    for number in range(learner.batches_learned, learner.batches_learned + batches):
        learner.learn(learner.observe(paired_stream(12, items=ITEMS, seed=number)))
    return learner


def test_applied_once_it_gains_and_until_it_does_not() -> None:
    trial = LoraTrial(is_tried=True)
    assert trial.scale == 0.0
    assert judged(trial, 0.1, batches=11).scale == 0.0  # too little to decide on
    assert judged(trial, 0.1).scale == trial.frequency == 1.0
    assert judged(trial, -0.3, seed=1).scale == 0.0
    assert judged(trial, 0.5, seed=2, batches=60).scale == 1.0


def test_steps_are_frequent_until_there_is_evidence_and_while_it_is_promising() -> None:
    """An adapter that was never trained says nothing of what a trained one is worth."""
    trial = LoraTrial(is_tried=True)
    assert trial.frequency == 1.0
    assert judged(trial, -0.1, batches=11).frequency == 1.0
    assert judged(trial, -0.1).frequency == 1 / 16


@pytest.mark.parametrize(("errors", "frequency"), [(0.5, 1 / 16), (1.75, 0.5), (2.2, 0.8)])
def test_steps_are_the_more_frequent_the_more_promising_the_adapter_is(errors: float, frequency: float) -> None:
    trial = promising(LoraTrial(is_tried=True), errors)
    assert trial.scale == 0.0
    assert trial.frequency == pytest.approx(frequency, abs=0.05)


def test_only_queries_that_were_never_learnt_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tiny_learner(SETTINGS, items=ITEMS)
    for number in range(4):
        learner.learn(learner.observe(searches(number)))
    known, new = searches(0), [bought._replace(query=f"{bought.query} again") for bought in searches(0)]
    browsed = paired_stream(3, items=ITEMS, seed=9)
    judged_places: list[list[int]] = []

    def record(batch: Batch, places: IntArray, *args: Any, **options: Any) -> None:
        judged_places.append(places.tolist())

    monkeypatch.setattr(lora_steps, "judged_events", record)
    monkeypatch.setattr(LoraTrial, "count", lambda *_: True)
    learner.learn(learner.observe([*known, *new, *browsed]))
    assert judged_places == [list(range(len(known), len(known) + len(new) + len(browsed)))]


def test_every_second_batch_is_judged_while_the_adapter_is_of_interest_else_every_eighth() -> None:
    learner = tiny_learner(SETTINGS, items=ITEMS)
    batch, trial = learner.observe(paired_stream(12, items=ITEMS, seed=0)), LoraTrial(is_tried=True)
    often, rarely = [False, True] * 4, [False] * 7 + [True]
    assert [trial.count(batch) for _ in range(8)] == often
    judged(trial, -0.1)
    assert [trial.count(batch) for _ in range(8)] == rarely
    trial.restart(is_applied=False)
    promising(trial, 1.75)
    assert trial.scale == 0.0
    assert [trial.count(batch) for _ in range(8)] == often
    judged(trial, 5.0)
    assert trial.scale == 1.0
    assert [trial.count(batch) for _ in range(8)] == often


@pytest.mark.parametrize("gain", [0.1, -0.1])
def test_a_drift_discards_the_evidence_and_keeps_the_scale(gain: float) -> None:
    learner = learnt(4)
    trial = judged(learner.lora_steps.trial, gain)
    scale = trial.scale
    assert scale == float(gain > 0)
    learner.set_rate_factor(3.0)
    assert (trial.trial.batches, trial.scale, trial.frequency) == (0.0, scale, 1.0)
    assert judged(trial, -0.1 if scale else 0.1, seed=3).scale == 1 - scale


def test_searches_apply_it_until_it_costs() -> None:
    learner = tiny_learner(SETTINGS, items=ITEMS)
    trial = learner.lora_steps.trial
    trial.count(learner.observe(searches(0)))
    assert trial.scale == 1.0
    assert judged(trial, 0.0).scale == 1.0
    assert judged(trial, -0.1).scale == 0.0
    trial.count(learner.observe(searches(1)))
    assert trial.scale == 0.0


def test_what_is_not_applied_is_trained_and_served_as_none() -> None:
    learner, without = learnt(40), learnt(40, SETTINGS.model_copy(update={"lora": False}))
    steps = learner.lora_steps
    assert steps.trial.scale == 0.0
    assert is_base(steps.served)
    assert not is_base(learner.encoder.lora_state())
    assert torch.equal(learner.ranker.text, without.ranker.text)
    assert torch.equal(learner.ranker.residuals["query"], without.ranker.residuals["query"])
    assert is_base(learner.bundle_groups(full=True)["adapter_model"])


def test_a_new_scale_is_served_after_a_swap_and_taken_back_the_same_way() -> None:
    learner = learnt(40)
    base, trial = learner.ranker.text.clone(), learner.lora_steps.trial
    judged(trial, 0.5)
    learnt(1, learner=learner)
    assert "next_adapter" in learner.bundle_groups(full=False)
    assert torch.equal(learner.ranker.text, base)
    learnt(3, learner=learner)
    assert not torch.equal(learner.ranker.text, base)
    judged(trial, -5.0)
    learnt(4, learner=learner)
    assert trial.scale == 0.0
    torch.testing.assert_close(learner.ranker.text, base)


def test_the_other_adapter_ranks_by_its_own_texts_and_leaves_none_of_them() -> None:
    """First the effect, then that nothing is left of it."""
    learner = learnt(20)
    steps, text = learner.lora_steps, learner.ranker.text.clone()
    batch = learner.observe(paired_stream(30, items=ITEMS, seed=99))
    events = judged_events(batch, np.arange(3, 30), learner.ranker.counters, generator=np.random.default_rng(1))
    assert events is not None
    assert len(events.batch) == 24
    rows = events.rows
    before = events.gains(learner.judge(events.batch))
    with steps.other_adapter(rows) as suffix:
        trained = learner.catalogue.vectors(suffix, rows.tolist())
        torch.testing.assert_close(learner.ranker.text[torch.from_numpy(rows)], trained.detach())
        assert not torch.equal(events.gains(learner.judge(events.batch)), before)
    assert torch.equal(learner.ranker.text, text)
    assert torch.equal(events.gains(learner.judge(events.batch)), before)


def test_a_served_adapter_is_judged_against_the_base() -> None:
    learner = learnt(40, SETTINGS.model_copy(update={"lora_trial": False}))
    base = tiny_learner(SETTINGS, items=ITEMS).ranker.text
    rows = np.arange(2, 9)
    with learner.lora_steps.other_adapter(rows):
        torch.testing.assert_close(learner.ranker.text[2:9], base[2:9])
        assert not torch.equal(learner.ranker.text[9:], base[9:])


@pytest.mark.parametrize(("is_applied", "sign"), [(False, 1), (True, -1)])
def test_the_gain_is_that_of_the_adapter(is_applied: bool, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of both is served, the other one is judged second."""
    added: list[torch.Tensor] = []
    monkeypatch.setattr(LoraTrial, "count", lambda *_: True)
    monkeypatch.setattr(LoraTrial, "add", lambda _, gains: added.append(gains))
    monkeypatch.setattr(LoraTrial, "scale", float(is_applied))
    learner = learnt(20)
    assert learner.lora_steps.serves_none != is_applied
    scores = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(JudgedEvents, "gains", lambda *_: next(scores))
    added.clear()
    learnt(1, learner=learner)
    assert [gains.tolist() for gains in added] == [[sign]]


def test_no_event_that_may_be_judged_is_no_judgement() -> None:
    learner = learnt(4)
    batch = learner.observe(paired_stream(8, items=ITEMS, seed=99))
    nothing = np.zeros(0, dtype=np.int64)
    assert judged_events(batch, nothing, learner.ranker.counters, generator=np.random.default_rng(1)) is None


def test_a_factor_on_the_adapter_is_a_factor_on_what_it_changes() -> None:
    learner = learnt(20, SETTINGS.model_copy(update={"lora_trial": False}))
    lora = learner.encoder.lora_state()
    assert scaled(lora, 1.0) == lora
    half = scaled(lora, 0.5)
    for name, value in lora.items():
        torch.testing.assert_close(half[name], value * 0.5 if ".lora_B" in name else value)
    assert is_base(scaled(lora, 0.0))


@pytest.mark.parametrize(("batches", "gain"), [(8, 0.05), (21, 0.02), (21, -0.05)])
def test_resumed_from_a_checkpoint_bit_for_bit(batches: int, gain: float, tmp_path: Path) -> None:
    """With an adapter that is applied, promising, or neither."""
    learner = learnt(batches)
    judged(learner.lora_steps.trial, gain, batches=16)
    save_checkpoint(tmp_path, 1, learner, {})
    resumed = tiny_learner(SETTINGS)
    load_checkpoint(tmp_path, 1, resumed)
    assert resumed.lora_steps.trial.frequency == learner.lora_steps.trial.frequency
    for one in (learner, resumed):
        for number in range(50, 70):
            one.learn(one.observe(searches(number)))
    assert resumed.lora_steps.trial.scale == learner.lora_steps.trial.scale
    assert state_bytes(resumed) == state_bytes(learner)


def test_an_earlier_release_continues_with_its_adapter() -> None:
    trial = LoraTrial(is_tried=True)
    trial.load_state_dict({})
    assert trial.scale == 1.0
    assert judged(trial, 0.0).scale == 1.0
    assert judged(trial, -0.1).scale == 0.0


def test_always_applied_without_a_trial() -> None:
    trial = LoraTrial(is_tried=False)
    assert (trial.scale, trial.frequency, trial.state_dict()) == (1.0, 1.0, {})
    batch = tiny_learner(SETTINGS, items=ITEMS).observe(searches(0))
    assert not any(trial.count(batch) for _ in range(8))
    trial.restart(is_applied=False)
    assert trial.scale == 1.0
