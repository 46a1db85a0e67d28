"""The second stage learns what a linear score cannot, costs nothing where it does not pay, and is restored exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import paired_stream, random_stream, shown_stream, state_bytes, tiny_learner
from torch import Tensor

from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import DelayedFeedback, lists_loss
from peft_adapters.learning.network_learner import NetworkLearner
from peft_adapters.learning.second_stage_groups import CANDIDATES, EventGroups, event_groups
from peft_adapters.learning.second_stage_lists import list_groups
from peft_adapters.learning.second_stage_steps import SecondStageSteps, list_gradient, quantised
from peft_adapters.learning.state_dicts import split_tensors
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.second_stage import INPUT_NAMES, NETWORKS, RERANKED
from peft_adapters.settings import GateSettings, LearnerSettings

OF_POSITIVES = torch.tensor([(name == "positives") / NETWORKS.count(name) for name in NETWORKS])
LONG, REPEAT = INPUT_NAMES.index("session_length"), INPUT_NAMES.index("repeat")


def _interaction(seed: int, *, pays: bool) -> EventGroups:
    """Return events where a repeat is what comes next if the session is short, and is not if it is long."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, len(INPUT_NAMES), CANDIDATES, generator=draw)
    is_long = (torch.rand(64, generator=draw) < 0.5).float()
    inputs[:, LONG] = is_long[:, None]
    inputs[:, REPEAT] = (torch.rand(64, CANDIDATES, generator=draw) < 0.5).float()
    if pays:
        inputs[:, REPEAT, 0] = 1 - is_long
    scores = torch.randn(64, CANDIDATES, generator=draw)
    return EventGroups(inputs, scores, torch.zeros(64, CANDIDATES), torch.ones(64))


def test_an_interaction_is_learnt_and_served() -> None:
    steps = SecondStageSteps(LearnerSettings())
    assert not steps.served(0.0).is_active
    for number in range(60):
        steps.step(_interaction(number, pays=True), number=number)
    served = steps.served(0.0)
    assert torch.equal(served.strength, OF_POSITIVES)
    new = _interaction(99, pays=True)
    output = served.output(new.inputs.transpose(0, 1))
    assert float(new.gains(output).mean()) > 0.03


def test_noise_is_not_served() -> None:
    steps = SecondStageSteps(LearnerSettings())
    for number in range(60):
        steps.step(_interaction(number, pays=False), number=number)
    assert float(steps.served(0.0).strength.sum()) < 0.3
    assert steps.trials["positives"].gain < 0.01


def test_what_stops_paying_is_withdrawn() -> None:
    steps = SecondStageSteps(LearnerSettings())
    for number in range(60):
        steps.step(_interaction(number, pays=True), number=number)
    harmful = _interaction(99, pays=True)
    harmful.inputs[:, LONG] = 1 - harmful.inputs[:, LONG]  # the opposite pays
    for _ in range(60):
        steps.trials["positives"].add(harmful.gains(_output(steps, harmful.inputs)))
    assert not steps.served(0.0).is_active


def _output(steps: SecondStageSteps, inputs: Tensor) -> Tensor:
    served = steps.served(0.0)
    return replace(served, strength=OF_POSITIVES).output(inputs.transpose(0, 1))


def test_features_that_the_settings_leave_out_have_no_effect() -> None:
    steps = SecondStageSteps(LearnerSettings(features=("transition", "session_length")))
    for number in range(12):
        steps.step(_interaction(number, pays=True), number=number)
    inputs = _interaction(50, pays=True).inputs
    changed = inputs.clone()
    changed[:, REPEAT] = 7.0
    assert torch.equal(_output(steps, inputs), _output(steps, changed))
    changed[:, LONG] = 7.0
    assert not torch.equal(_output(steps, inputs), _output(steps, changed))


def test_inputs_are_kept_within_a_step_of_their_range() -> None:
    inputs = (
        torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 50, 0, 7])[:, None]
    )
    kept = quantised(inputs)
    assert kept["levels"].dtype == torch.uint8
    spread = inputs.amax(dim=2) - inputs.amin(dim=2)
    error = (kept["low"] + kept["step"] * kept["levels"] - inputs).abs().amax(dim=2)
    assert bool((error <= spread / 255 / 2 * 1.01 + 1e-7).all())


def test_replayed_inputs_are_standardised_as_new_ones_are() -> None:
    unused, constant = 3, 5
    mask = torch.ones(len(INPUT_NAMES))
    mask[unused] = 0
    network, draw = NetworkLearner(mask, networks=2, seed=0), torch.Generator().manual_seed(0)
    inputs = 3 + torch.randn(4, len(INPUT_NAMES), 9, generator=draw) * torch.rand(len(INPUT_NAMES), 1, generator=draw)
    inputs[:, constant] = 2
    network.observe(inputs.transpose(0, 1).flatten(1))
    expected = network.standardised(inputs.transpose(0, 1))
    assert len(expected) == len(INPUT_NAMES) - 2
    torch.testing.assert_close(network.standardised_levels(**quantised(inputs)), expected, rtol=0, atol=0.02)


def test_inputs_without_use_have_no_part_in_a_step() -> None:
    network, draw = NetworkLearner(torch.ones(len(INPUT_NAMES)), networks=2, seed=0), torch.Generator().manual_seed(0)
    inputs = torch.randn(len(INPUT_NAMES), 9, generator=draw)
    inputs[5] = 2
    network.observe(inputs)
    before = network.weights["w1"].clone()
    for _ in range(2):  # the output's weights are zero before the first
        network.step(network.standardised(inputs), lambda output: torch.arange(9.0) - 4)
    moved = (network.weights["w1"] != before).any(dim=1)
    assert moved.tolist() == [[number != 5 for number in range(len(INPUT_NAMES))]] * 2


def test_each_network_moves_by_the_gradient_of_its_own_loss() -> None:
    learner, draw = NetworkLearner(torch.ones(len(INPUT_NAMES)), networks=2, seed=0), torch.Generator().manual_seed(0)
    inputs, target = torch.randn(len(INPUT_NAMES), 9, generator=draw), torch.randn(9, generator=draw)
    learner.observe(inputs)
    learner.weights["w3"].normal_(generator=draw)
    weights = {name: value.clone().requires_grad_() for name, value in learner.weights.items()}
    standard = learner.standardised(inputs)
    outputs = []
    for w1, b1, w2, b2, w3 in zip(*(weights[name] for name in ("w1", "b1", "w2", "b2", "w3")), strict=True):
        first = torch.relu(w1 @ standard + b1[:, None])
        outputs.append(w3 @ torch.relu(w2 @ first + b2[:, None]))
    torch.testing.assert_close(learner.output(standard), torch.stack(outputs).mean(dim=0))
    loss = torch.stack([(output - target).square().sum() / 2 for output in outputs]).sum()
    expected = torch.cat([value.flatten() for value in torch.autograd.grad(loss, list(weights.values()))])
    learner.step(standard, lambda output: output - target)
    torch.testing.assert_close(10 * learner.state_dict()["moments"][0], expected, rtol=1e-4, atol=1e-5)


# ---- events of a micro-batch


def _observed(items: int, settings: LearnerSettings | None = None) -> tuple[Learner, EventGroups]:
    learner = tiny_learner(settings or LearnerSettings(), items=items)
    learner.learn(learner.observe(random_stream(60, items=items, seed=0)))
    batch = learner.observe(random_stream(40, items=items, seed=1))
    with torch.inference_mode():
        return learner, event_groups(batch, learner.ranker, generator=np.random.default_rng(0))


def test_the_event_s_item_comes_first_and_all_of_a_small_catalogue_after_it() -> None:
    _, groups = _observed(30)
    assert len(groups) == 40
    assert groups.is_candidate.sum(dim=1).tolist() == [30] * 40
    assert not groups.log_expected.any()
    batch_scores = groups.inputs[:, -1].masked_fill(~groups.is_candidate, -torch.inf)
    assert torch.equal(batch_scores, groups.scores)
    others = groups.scores[:, 1:30]
    assert torch.equal(others, others.sort(dim=1, descending=True).values)


def test_events_beyond_the_best_are_left_out_and_drawn_candidates_weigh_more() -> None:
    _, groups = _observed(RERANKED + 100)
    assert 0 < len(groups) < 40
    assert bool(groups.is_candidate.all())
    stand_for = torch.exp(-groups.log_expected).sum(dim=1)
    torch.testing.assert_close(stand_for, torch.full_like(stand_for, RERANKED))


def test_events_are_used_as_far_as_they_can_still_teach() -> None:
    learner = tiny_learner(LearnerSettings(), items=30)
    batch = learner.observe(random_stream(40, items=30, seed=1))

    def used(novelty: Tensor) -> int:
        with torch.inference_mode():
            return len(event_groups(batch, learner.ranker, novelty=novelty, generator=np.random.default_rng(0)))

    assert [used(torch.full((40,), share)) for share in (0.0, 1.0)] == [0, 40]
    assert 10 < used(torch.full((40,), 0.5)) < 30
    assert used((torch.arange(40) < 7).float()) == 7


# ---- gradients


def test_the_gradient_of_lists_is_that_of_their_loss() -> None:
    learner = tiny_learner(LearnerSettings(), items=30)
    for shown, clicks in shown_stream(6, items=30, seed=1, users=8):
        learner.learn(learner.observe(clicks)) if clicks else None
        learner.learn_lists(learner.observe_lists([shown]))
    batch = learner.observe_lists([shown for shown, _ in shown_stream(5, items=30, seed=2, users=8)])
    feedback, examination = DelayedFeedback(), torch.tensor([-1.5, 0.4])
    groups = list_groups(batch, learner.ranker, examination, feedback)
    output = torch.randn(groups.scores.shape, generator=torch.Generator().manual_seed(0))
    found = list_gradient(output.flatten(), groups.kept()).view(output.shape)[groups.is_candidate]
    added = output[groups.is_candidate].requires_grad_()
    loss = lists_loss(batch, groups.scores[groups.is_candidate] + added, examination, feedback)
    (expected,) = torch.autograd.grad(loss, added)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---- state


@pytest.fixture(scope="module")
def learner() -> Learner:
    return _learnt(12)


def _learnt(batches: int, settings: LearnerSettings | None = None) -> Learner:
    learner = tiny_learner(settings or LearnerSettings(), items=30)
    for seed in range(batches):
        learner.learn(learner.observe(paired_stream(64, items=30, seed=seed)))
    return learner


def test_a_restored_learner_goes_on_bit_for_bit(learner: Learner) -> None:
    saved, restored = _learnt(9), tiny_learner(LearnerSettings(), items=0)
    restored.load_state_dict(saved.state_dict())
    for seed in range(9, 12):
        restored.learn(restored.observe(paired_stream(64, items=30, seed=seed)))
    assert learner.ranker.second_stage.is_active
    assert state_bytes(restored) == state_bytes(learner)
    names = split_tensors(learner.state_dict())[0]
    assert {"second_stage/positives/flat", "second_stage_replay/positives/levels"} <= names.keys()


def test_a_batch_is_judged_as_it_is_served(learner: Learner) -> None:
    batch = learner.observe(paired_stream(30, items=30, seed=50))
    served = FrozenRanker(learner.ranker)
    torch.testing.assert_close(learner.judge(batch), served.score(batch.contexts), rtol=1e-4, atol=1e-4)
    first = learner.first_of(batch, 7)
    torch.testing.assert_close(learner.judge(first), learner.judge(batch)[:7], rtol=1e-4, atol=1e-4)


def test_the_gate_judges_the_live_adapter_with_its_own_networks(learner: Learner) -> None:
    gate = Gate(learner, PrequentialEvaluator(), GateSettings())
    batch = learner.observe(paired_stream(200, items=30, seed=51))
    gate.update(batch, learner.judge(batch))
    assert gate.evidence().loss_difference == pytest.approx(0, abs=1e-3)
    active = learner.ranker.second_stage
    learner.ranker.second_stage = replace(active, w3=-20 * active.w3)
    gate.update(batch, learner.judge(batch))
    learner.ranker.second_stage = active
    assert gate.evidence().loss_difference > 0.01
    assert gate.evidence().norms["second_stage"][0] == gate.evidence().norms["second_stage"][1] > 0


def test_a_state_of_an_earlier_release_starts_with_nothing_learnt(learner: Learner) -> None:
    state = learner.state_dict()
    state = {name: part for name, part in state.items() if not name.startswith("second_stage")}
    state["ranker"] = {name: value for name, value in state["ranker"].items() if name != "second_stage"}
    restored = _learnt(1)
    restored.load_state_dict(state)
    assert not restored.ranker.second_stage.is_active
    assert not restored.second_stage.served(0.0).is_active


def test_networks_with_other_inputs_start_with_nothing_learnt(learner: Learner) -> None:
    state = learner.state_dict()
    for network in state["second_stage"].values():
        for name in ("mean", "squares"):
            network[name] = network[name][1:]
        network["flat"], network["moments"] = network["flat"][32:], network["moments"][:, 32:]
    for name, value in state["ranker"]["second_stage"].items():
        state["ranker"]["second_stage"][name] = value[..., 1:] if name in ("mean", "scale", "w1") else value
    for replay in state["second_stage_replay"].values():
        replay |= {name: replay[name][:, 1:] for name in ("levels", "low", "step") if replay}
    restored = tiny_learner(LearnerSettings(), items=0)
    restored.load_state_dict(state)
    assert not restored.ranker.second_stage.is_active
    assert restored.second_stage.replay_state_dict()["positives"] == {}
    restored.learn(restored.observe(paired_stream(64, items=30, seed=12)))
    assert not restored.ranker.second_stage.is_active


def test_sessions_are_counted_restored_and_forgotten() -> None:
    learner = _learnt(3)
    sessions = learner.ranker.neighbours.state_dict()
    with learner.counts_restored():
        learner.reset_counts()
        assert len(learner.ranker.neighbours) == 0
        learner.learn(learner.observe(paired_stream(64, items=30, seed=12)))
    restored = learner.ranker.neighbours.state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in sessions.items())
    user = next(iter(learner.shoppers.state_dict()))
    known = len(learner.ranker.neighbours)
    assert known > 0
    learner.forget(user)
    assert len(learner.ranker.neighbours) < known


def test_forgetting_and_rolling_back_clear_the_replay() -> None:
    learner = _learnt(3)
    assert learner.second_stage.replay_state_dict()["positives"]
    learner.forget("nobody")
    assert learner.second_stage.replay_state_dict() == {"positives": {}, "lists": {}}


def test_without_the_second_stage_nothing_of_it_is_learnt() -> None:
    learner = _learnt(9, LearnerSettings(second_stage=False))
    assert not learner.ranker.second_stage.is_active
    assert learner.second_stage.replay_state_dict() == {"positives": {}, "lists": {}}
    assert "second_stage" not in learner.bundle_groups(full=True)


def test_a_learner_that_starts_from_a_bundle_serves_its_networks(learner: Learner) -> None:
    groups = learner.bundle_groups(full=True)
    started = tiny_learner(LearnerSettings(), items=0)
    started.load_bundle_groups(groups, learner.catalogue.ids, None)
    started.learn(started.observe(paired_stream(64, items=30, seed=99)))
    served, published = started.ranker.second_stage, learner.ranker.second_stage
    torch.testing.assert_close(served.strength, published.strength)
    torch.testing.assert_close(served.w1, published.w1, rtol=0, atol=0.05)
