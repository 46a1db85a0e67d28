"""The gate watches, refuses a learner that got worse, and takes it back; a healthy one passes all the way."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Bought, paired_stream, tiny_learner

from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.state_dicts import join_tensors, split_tensors
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.lifecycle.gate_rules import Evidence, judge_candidate
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import quantise_rows
from peft_adapters.settings import GateSettings, LearnerSettings

ITEMS, EVENTS = 30, 40
SETTINGS = LearnerSettings(lora_refresh_steps=2, lora_items=16)
RULES = GateSettings(window_events=2 * EVENTS, min_events=EVENTS, refusals_before_rollback=2)
NO_CAUSE = Evidence(
    events=1_000, loss_difference=0.0, standard_error=0.01, calibration=1.0, live_calibration=1.0, norms={}
)


class Judged:
    """A learner and its gate, which judges it after every batch."""

    def __init__(self, settings: GateSettings = RULES, learner: LearnerSettings = SETTINGS) -> None:
        self.learner = tiny_learner(learner, items=ITEMS)
        self.prequential = PrequentialEvaluator()
        self.gate = Gate(self.learner, self.prequential, settings)
        self.batches = 0

    def learn(self, poison: Callable[[Learner], None] | None = None) -> dict[str, Any]:
        """One batch, judged and learnt, then `poison` instead of a good step; what the gate says of it."""
        batch = self.learner.observe(paired_stream(EVENTS, items=ITEMS, seed=self.batches))
        self.batches += 1
        scores = self.learner.judge(batch)
        self.prequential.update(batch, scores)
        self.gate.update(batch, scores)
        self.learner.learn(batch)
        if poison is not None:
            poison(self.learner)
        return self.gate.judge(self.learner.bundle_groups(full=True))

    def publish(self, batches: int) -> list[dict[str, Any]]:
        verdicts = []
        for _ in range(batches):
            verdicts.append(self.learn())
            self.gate.apply("published")
        return verdicts


def turned_round(learner: Learner) -> None:
    """What a poisoned batch may do: all that was learnt counts for its opposite."""
    learner.positives.heads.neg_()
    learner.ranker.heads = -learner.ranker.heads


def no_number(learner: Learner) -> None:
    learner.positives.heads.fill_(math.nan)
    learner.ranker.heads = torch.full_like(learner.ranker.heads, math.nan)
    learner.ranker.residuals["query"].fill_(math.nan)
    for optimiser in learner.positives.row_optimisers.values():
        optimiser._moment.fill_(math.nan)
    for parameter in learner.encoder.lora_parameters():
        parameter.data.fill_(math.nan)


def test_a_healthy_learner_passes_every_time() -> None:
    verdicts = Judged().publish(12)
    assert [verdict["decision"] for verdict in verdicts] == ["passed"] * 12
    assert "losses and calibration were not compared" not in verdicts[0].get("note", "")
    last = verdicts[-1]
    assert last["events"] == RULES.window_events
    assert min(verdict["loss_difference"] for verdict in verdicts) < 0  # it learns
    assert last["live_events_learned"] > 0
    assert json.loads(json.dumps(last, allow_nan=False)) == last


def test_with_few_events_losses_are_not_compared_and_it_says_so() -> None:
    judged = Judged(GateSettings(min_events=EVENTS + 1))
    verdict = judged.learn(poison=turned_round)
    assert verdict["decision"] == "passed"
    assert verdict["note"] == f"losses and calibration were not compared: {EVENTS} events, {EVENTS + 1} needed"
    assert "loss_difference" not in verdict


def test_the_learner_itself_is_no_worse_than_itself() -> None:
    judged = Judged(learner=SETTINGS.model_copy(update={"residuals": False, "lora": False, "heads_learning_rate": 0.0}))
    judged.learn()
    assert np.abs(list(judged.gate._differences)).max() < 1e-3  # texts are kept in half precision


def test_one_that_got_worse_is_refused_and_after_n_goes_back() -> None:
    judged = Judged()
    judged.publish(6)
    judged.gate.anchor()
    good = {name: value.clone() for name, value in judged.learner.learned_tensors().items()}
    shoppers, counted = judged.learner.shoppers.state_dict(), judged.learner.events_learned
    judged.learn(poison=turned_round)
    first = judged.learn()
    assert (first["decision"], first["rules"][-1]) == ("refused", "loss")
    assert "above the live adapter's" in " ".join(first["reasons"])
    assert judged.gate.apply("refused") is None
    assert judged.learn()["decision"] == "refused"
    said = judged.gate.apply("refused")
    assert said is not None
    assert (said["after_refusals"], said["to_events_learned"]) == (2, counted)
    assert said["reasons"]
    back = judged.learner.learned_tensors()
    assert back.keys() == good.keys()
    for name, value in good.items():
        torch.testing.assert_close(back[name], value, atol=2e-3, rtol=1e-3, msg=name)
    assert judged.learner.events_learned == counted + 3 * EVENTS  # nothing is forgotten
    assert judged.learner.shoppers.state_dict() != shoppers
    assert int(judged.learner.ranker.counters.events.sum()) == judged.learner.events_learned


def test_what_was_to_be_served_next_is_dropped_by_going_back() -> None:
    judged = Judged(learner=SETTINGS.model_copy(update={"lora_every_events": 1, "lora_ahead_batches": 1_000}))
    judged.publish(4)
    judged.gate.anchor()
    judged.learn(poison=turned_round)
    for _ in range(2):
        assert judged.learner.lora_steps.next_adapter is not None
        judged.learn()
        judged.gate.apply("refused")
    assert judged.learner.lora_steps.next_adapter is None


def test_the_next_that_passes_says_that_it_went_back_and_the_one_after_does_not() -> None:
    judged = Judged()
    judged.publish(4)
    judged.learn(poison=turned_round)
    for _ in range(2):
        judged.learn()
        judged.gate.apply("refused")
    verdict = judged.learn()
    assert verdict["decision"] == "passed"
    assert verdict["went_back"]["after_refusals"] == 2
    judged.gate.apply("published")
    assert "went_back" not in judged.learn()


def test_a_learner_gone_nan_recovers() -> None:
    judged = Judged()
    judged.publish(6)
    before = judged.prequential.values()["hr20"]
    for number in range(2):
        verdict = judged.learn(poison=no_number if number == 0 else None)
        assert (verdict["decision"], verdict["rules"][-1]) == ("refused", "not_finite")
        json.dumps(verdict, allow_nan=False)
        judged.gate.apply("refused")
    assert all(value.isfinite().all() for value in judged.learner.learned_tensors().values())
    assert [verdict["decision"] for verdict in judged.publish(6)] == ["passed"] * 6
    assert all(math.isfinite(value) for value in judged.prequential.values().values())
    assert judged.prequential.values()["hr20"] >= before - 0.1


def test_before_anything_was_published_it_goes_back_to_the_start() -> None:
    judged = Judged()
    start = judged.learner.ranker.heads.clone()
    for number in range(2):
        judged.learn(poison=no_number if number == 0 else None)
        judged.gate.apply("refused")
    assert torch.equal(judged.learner.ranker.heads, start)


def test_items_that_came_after_the_live_adapter_are_there_after_going_back() -> None:
    judged = Judged()
    judged.publish(4)
    judged.learner.add_items([("new", "a blue lamp")])
    bought = [Bought("user-1", None, "new", 10**9), Bought("user-1", None, "item-1", 10**9 + 1)]
    batch = judged.learner.observe(bought)
    judged.gate.update(batch, judged.learner.judge(batch))
    judged.learner.learn(batch)
    for _ in range(2):
        judged.gate.apply("refused")
    assert len(judged.learner.ranker) == ITEMS + 1
    assert judged.learner.ranker.text[-1].norm() == pytest.approx(1, abs=1e-4)
    assert not judged.learner.ranker.residuals["query"][-1].any()
    judged.learn()


def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped() -> None:
    judged = Judged()
    judged.publish(5)
    judged.gate.apply("refused")
    tensors, state = split_tensors(judged.gate.state_dict())
    resumed = Gate(judged.learner, judged.prequential, RULES)
    resumed.load_state_dict(join_tensors(tensors, json.loads(json.dumps(state))))
    judged.learner.add_items([("new", "a blue lamp")])
    for seed in (11, 12):
        batch = judged.learner.observe(paired_stream(EVENTS, items=ITEMS, seed=seed))
        scores = judged.learner.judge(batch)
        for gate in (judged.gate, resumed):
            gate.update(batch, scores)
    one, other = (split_tensors(gate.state_dict()) for gate in (judged.gate, resumed))
    assert one[1] == other[1]
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    assert one[0].keys() == other[0].keys()


def test_what_was_published_before_it_was_seen_to_be_bad_is_not_gone_back_to() -> None:
    judged = Judged()
    judged.publish(5)
    judged.learn(poison=turned_round)
    judged.gate.apply("published")  # nothing was known of it, and it becomes the successor
    for _ in range(2):
        assert judged.learn()["decision"] == "refused"
        said = judged.gate.apply("refused")
    assert said is not None
    assert said["to_events_learned"] == 4 * EVENTS
    assert judged.learn()["decision"] == "passed"


def test_the_live_adapter_is_replaced_once_a_window_was_judged_beside_it() -> None:
    judged = Judged()
    learned = [verdict["live_events_learned"] for verdict in judged.publish(7)]
    assert learned == [0, 0, 0, 0, 2 * EVENTS, 2 * EVENTS, 4 * EVENTS]


@pytest.mark.parametrize(
    ("evidence", "rule"),
    [
        ({"loss_difference": 0.09}, "loss"),
        ({"calibration": 1.21}, "calibration"),
        ({"calibration": 0.79}, "calibration"),
        ({"norms": {"heads": (31.0, 10.0)}}, "norm"),
        ({"norms": {"residuals": (3.1, 0.01)}}, "norm"),
    ],
)
def test_each_rule_refuses_alone(evidence: dict[str, Any], rule: str) -> None:
    verdict = judge_candidate(_at_rest(), GateSettings(), NO_CAUSE.__class__(**_fields() | evidence))
    assert (verdict["decision"], verdict["rules"]) == ("refused", [rule])
    assert len(verdict["reasons"]) == 1


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"loss_difference": 0.079},  # 0.05 are tolerated, and three standard errors of 0.01
        {"loss_difference": 5.0, "standard_error": 2.0},  # too few or too different events to say
        {"loss_difference": 5.0, "events": 127},
        {"calibration": 2.0, "events": 127},
        {"calibration": None},
        {"calibration": 2.0, "live_calibration": None},  # the first steps of all
        {"calibration": 0.65, "live_calibration": 1.2},  # no further off than it was, and a bit
        {"norms": {"residuals": (2.9, 0.0)}},  # from nothing everything is large
    ],
)
def test_what_the_evidence_allows_passes(evidence: dict[str, Any]) -> None:
    verdict = judge_candidate(_at_rest(), GateSettings(), NO_CAUSE.__class__(**_fields() | evidence))
    assert verdict["decision"] == "passed"


def _fields() -> dict[str, Any]:
    return {name: getattr(NO_CAUSE, name) for name in NO_CAUSE.__slots__}


def _at_rest() -> dict[str, dict[str, torch.Tensor]]:
    residuals = {k: v for role in ROLES for k, v in quantise_rows(role, torch.zeros(0, 2), ()).items()}
    return {"adapter_model": {}, "heads": {}, "residuals": residuals, "counters": {}}
