"""Halved counts win where shoppers have changed and only there, and a trial goes on bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import Bought, shown_stream, state_bytes, tiny_learner

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.drift import DriftMonitor, DriftResponse, respond_to_drift
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.state_dicts import join_tensors, split_tensors
from peft_adapters.settings import FEATURES, DriftSettings, LearnerSettings

ITEMS, BATCH = 40, 32
SETTINGS = LearnerSettings(lora=False, second_stage=False)


def observed(learner: Learner, number: int, *, follower: int = 1) -> Batch:
    """Observe sessions of two events, in which item `k + follower` comes after the even item `k`."""
    rng = np.random.default_rng(number)
    events = []
    for index in range(BATCH // 2):
        first, name = 2 * rng.integers(ITEMS // 2), f"{number}-{index}"
        for step, item in enumerate((first, (first + follower) % ITEMS)):
            ts = 1_000_000 * (100 * number + 2 * index + step)
            events.append(Bought(f"user-{name}", f"session-{name}", f"item-{item}", ts))
    return learner.observe(events)


def experienced(batches: int = 60) -> Learner:
    """Return a learner that ranks by what follows what, and nothing else."""
    learner = tiny_learner(SETTINGS, items=ITEMS)
    learner.positives.heads.zero_()
    learner.positives.heads[FEATURES.index("transition")] = 1
    for number in range(batches):
        learner.count(observed(learner, number))
    return learner


def verdicts(learner: Learner, *, follower: int, batches: int = 30) -> list[bool]:
    """Go on counting, and return the trial's verdict at each micro-batch, up to the first that is true."""
    found = []
    for number in range(batches):
        batch = observed(learner, 1_000 + number, follower=follower)
        found.append(learner.counts_trial.judge(batch, learner.ranker))
        if found[-1]:
            break
        learner.count(batch)
    return found


def test_halved_counts_are_better_where_other_items_follow_from_now_on() -> None:
    learner = experienced()
    learner.counts_trial.begin(learner.ranker, 3)
    assert verdicts(learner, follower=7)[-1]


def test_they_are_not_where_all_is_as_before_and_the_trial_ends() -> None:
    learner = experienced()
    learner.counts_trial.begin(learner.ranker, 3)
    assert not any(verdicts(learner, follower=1, batches=31))
    assert learner.counts_trial.counters is not None
    assert not any(verdicts(learner, follower=1, batches=2))  # 1,024 events in all
    assert learner.counts_trial.counters is None


def test_both_counters_count_the_same_events_lists_and_items() -> None:
    learner = experienced(4)
    before = learner.ranker.counters.copy()
    learner.counts_trial.begin(learner.ranker, 2)
    learner.add_items([("new", "a new lamp")])
    learner.learn(observed(learner, 500))
    shown, _ = shown_stream(1, items=ITEMS, seed=0)[0]
    learner.learn_lists(learner.observe_lists([shown]))
    halved, counters = learner.counts_trial.counters, learner.ranker.counters
    assert halved is not None
    old = np.pad(before.events, (0, 1))
    np.testing.assert_array_equal(counters.events - old, halved.events - old / 4)
    np.testing.assert_array_equal(counters.shown, halved.shown)
    assert counters.shown.sum() > 0
    pairs = [counter.matrices["followed"].row_sums.sum() for counter in (counters, halved)]
    total = before.matrices["followed"].row_sums.sum()
    assert pairs[0] - total == pairs[1] - total / 4 > 0


@pytest.mark.parametrize("running", [False, True])
def test_a_restored_trial_goes_on_bit_for_bit(running: bool) -> None:
    learner = experienced(20)
    if running:
        learner.counts_trial.begin(learner.ranker, 3)
    verdicts(learner, follower=7, batches=2)
    restored = tiny_learner(SETTINGS, items=0)
    restored.load_state_dict(join_tensors(*split_tensors(learner.state_dict())))
    restored.refit()
    assert verdicts(learner, follower=7) == verdicts(restored, follower=7)
    assert state_bytes(learner) == state_bytes(restored)
    assert (learner.counts_trial.counters is not None) == (restored.counts_trial.counters is not None)


def test_what_is_counted_for_a_while_is_taken_back_from_both() -> None:
    learner = experienced(4)
    learner.counts_trial.begin(learner.ranker, 2)
    before = learner.counts_trial.state_dict()["counters"]
    with learner.counts_restored():
        batch = observed(learner, 500)
        learner.counts_trial.judge(batch, learner.ranker)
        learner.count(batch)
    state = learner.counts_trial.state_dict()
    assert state["figures"][1:].tolist() == [0.0, 0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in state["counters"].items())


class Alarming(DriftMonitor):
    """Raises an alarm at its first batch."""

    first = True

    def update(self, losses: object) -> DriftResponse:
        response = DriftResponse(alarms=("adwin",) if self.first else ())
        self.first = False
        return response


def test_after_an_alarm_counts_are_halved_until_it_no_longer_pays() -> None:
    learner, monitor = experienced(), Alarming(DriftSettings(forget_halvings=1))
    responses = []
    for number in range(80):
        batch = observed(learner, 1_000 + number, follower=7)
        responses.append(respond_to_drift(learner, monitor, batch, [0.0]))
        learner.count(batch)
    assert sum(response.halvings for response in responses) >= 2
    assert max(response.halvings for response in responses) == 1
    assert learner.counts_trial.counters is None
