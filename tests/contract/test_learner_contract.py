"""What every learner owes its callers, whatever parts of it are switched off.

A learner is whatever passes these checks: judged before it learns, the same for the same stream, resumed as if it had
never stopped, and no better than chance where there is nothing to learn.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import pytest
import safetensors.torch
import torch
from tiny_model import Bought, Listed, paired_stream, random_stream, shown_stream, state_bytes, tiny_learner

from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import learner_state, restore_learner
from peft_adapters.settings import AFFINITY_FEATURES, COUNTER_FEATURES, FEATURES, QUERY_FEATURES, LearnerSettings
from services.lab.backtest.policies import POLICIES, policy_settings

ITEMS = 60
MakeLearner = Callable[..., Learner]


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make(policy: str) -> MakeLearner:
    """Learners of the policy: a LoRA step every other batch, at a rate that shows within a few."""

    def make_learner(*, items: int = ITEMS, seed: int = 0, **settings: int | float) -> Learner:
        quick = {"lora_every_events": 1, "lora_refresh_steps": 2, "lora_learning_rate": 0.01, **settings}
        return tiny_learner(policy_settings(LearnerSettings(**quick), policy, seed), items=items)

    return make_learner


def in_batches(events: Sequence[Bought], size: int = 25) -> Iterator[Sequence[Bought]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]


def learn(learner: Learner, events: Sequence[Bought]) -> list[float]:
    return [learner.learn(learner.observe(batch)) for batch in in_batches(events)]


def check_judging_changes_nothing(make: MakeLearner) -> None:
    judged, unjudged = make(), make()
    for batch in in_batches(paired_stream(150, items=ITEMS, seed=1)):
        observed = judged.observe(batch)
        before, shoppers = state_bytes(judged), judged.shoppers.state_dict()
        first = judged.judge(observed)
        assert torch.equal(judged.judge(observed), first)
        assert state_bytes(judged) == before
        assert judged.shoppers.state_dict() == shoppers
        assert judged.learn(observed) == unjudged.learn(unjudged.observe(batch))
    assert state_bytes(judged) == state_bytes(unjudged)


def check_a_batch_is_judged_by_what_stood_before_it(make: MakeLearner) -> None:
    """Whatever happens later in the batch, an event's score cannot know of it."""
    learner, other = make(), make()
    for either in (learner, other):
        learn(either, paired_stream(100, items=ITEMS, seed=1))
    events = paired_stream(40, items=ITEMS, seed=2)
    later = [Bought("stranger", None, "item-3", event.ts) for event in events[20:]]
    whole = learner.judge(learner.observe(events))
    changed = other.judge(other.observe([*events[:20], *later]))
    torch.testing.assert_close(changed[:20], whole[:20])


def check_the_same_stream_gives_the_same_learner(make: MakeLearner) -> None:
    first, second = make(negatives=20), make(negatives=20)
    for learner in (first, second):
        torch.manual_seed(id(learner) % 1000)  # the global state must not matter
        learn(learner, paired_stream(200, items=ITEMS, seed=1))
    assert state_bytes(first) == state_bytes(second)


def check_resumed_equals_uninterrupted(make: MakeLearner) -> None:
    """Stopped between batches, amid LoRA's accumulation, state sent through bytes: not one bit differs at the end."""
    events = paired_stream(400, items=ITEMS, seed=1)
    unkilled = make(negatives=20, lora_every_events=1, lora_refresh_steps=4)
    learn(unkilled, events[:175])  # 7 batches
    tensors, state = learner_state(unkilled)
    saved = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    resumed = make(items=0, negatives=20, lora_every_events=1, lora_refresh_steps=4)
    restore_learner(resumed, safetensors.torch.load(saved), json.loads(json.dumps(state)))
    for learner in (unkilled, resumed):
        learner.add_items([("item-60", "a bird of glass"), ("item-3", "another title")])
    later = [*events[175:], *random_stream(50, items=61, seed=5)]
    assert learn(unkilled, later) == learn(resumed, later)
    assert state_bytes(resumed) == state_bytes(unkilled)
    assert resumed.shoppers.state_dict() == unkilled.shoppers.state_dict()
    assert (resumed.batches_learned, resumed.events_learned) == (unkilled.batches_learned, unkilled.events_learned)


def learn_shown(learner: Learner, stream: Sequence[tuple[Listed, list[Bought]]], size: int = 10) -> list[float]:
    """Clicks at once, their lists after them."""
    losses = []
    for start in range(0, len(stream), size):
        part = stream[start : start + size]
        losses.append(learner.learn(learner.observe([click for _, clicks in part for click in clicks])))
        losses.append(learner.learn_lists(learner.observe_lists([shown for shown, _ in part])))
    return losses


def late_click(shown: Listed) -> Listed:
    return shown._replace(item_ids=shown.item_ids[:1], clicked=(True,), is_correction=True)


def and_bought(shown: Listed) -> Listed:
    """The same, the first that was clicked bought."""
    clicked = [item_id for item_id, was in zip(shown.item_ids, shown.clicked, strict=True) if was]
    return shown._replace(purchases=tuple(clicked[:1]))


def late_purchase(shown: Listed) -> Listed:
    """Of what was learnt as clicked."""
    return shown._replace(
        item_ids=shown.item_ids[:1], clicked=(False,), is_correction=True, purchases=shown.item_ids[:1]
    )


def check_lists_resumed_equal_uninterrupted(make: MakeLearner) -> None:
    stream = [(and_bought(shown), clicks) for shown, clicks in shown_stream(160, items=ITEMS, seed=1, liked=20)]
    unkilled = make(negatives=20)
    learn_shown(unkilled, stream[:70])
    late = [late_click(stream[60][0]), late_purchase(stream[61][0])]
    unkilled.learn_lists(unkilled.observe_lists(late))
    tensors, state = learner_state(unkilled)
    saved = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    resumed = make(items=0, negatives=20)
    restore_learner(resumed, safetensors.torch.load(saved), json.loads(json.dumps(state)))
    assert learn_shown(resumed, stream[70:]) == learn_shown(unkilled, stream[70:])
    assert state_bytes(resumed) == state_bytes(unkilled)
    assert {name: value.tolist() for name, value in learner_state(resumed)[0].items()} == {
        name: value.tolist() for name, value in learner_state(unkilled)[0].items()
    }
    assert learner_state(resumed)[1] == learner_state(unkilled)[1]
    assert resumed.lists.lists_learned == 162
    assert resumed.lists.outcomes.learnt == {"click": True, "purchase": True}


def check_judging_lists_changes_nothing(make: MakeLearner) -> None:
    learner = make()
    stream = shown_stream(60, items=ITEMS, seed=1, liked=20)
    learn_shown(learner, stream[:40])
    before, shoppers = state_bytes(learner), learner.shoppers.state_dict()
    batch = learner.observe_lists([shown for shown, _ in stream[40:]])
    scores, probabilities = learner.judge_lists(batch)
    assert probabilities["click"].shape == batch.items.shape
    assert [len(own) for own in scores] == [8] * 20
    assert all(torch.equal(*pair) for pair in zip(scores, learner.judge_lists(batch).scores, strict=True))
    assert state_bytes(learner) == before
    assert learner.shoppers.state_dict() == shoppers


def check_no_lists_are_no_step(make: MakeLearner) -> None:
    learner = make()
    learn_shown(learner, shown_stream(20, items=ITEMS, seed=1))
    before = state_bytes(learner)
    assert learner.learn_lists(learner.observe_lists([])) == 0.0
    assert learner.judge_lists(learner.observe_lists([])).scores == []
    assert state_bytes(learner) == before


def check_an_item_added_later_can_be_ranked_and_learnt(make: MakeLearner) -> None:
    learner = make()
    learn(learner, paired_stream(100, items=ITEMS, seed=1))
    learner.add_items([("late", "a late bird")])
    batch = learner.observe([Bought("ann", None, "late", 10**9), Bought("ann", None, "item-0", 10**9)])
    assert learner.judge(batch).shape == (2, ITEMS + 1)
    assert bool(torch.isfinite(learner.judge(batch)).all())
    learner.learn(batch)
    assert learner.ranker.counters.events[ITEMS] == 1


def check_an_unknown_item_is_refused_and_nothing_has_happened(make: MakeLearner) -> None:
    learner = make()
    shoppers, before = learner.shoppers.state_dict(), state_bytes(learner)
    with pytest.raises(KeyError, match="nowhere"):
        learner.observe([Bought("ann", None, "item-1", 0), Bought("ann", None, "nowhere", 1)])
    assert learner.shoppers.state_dict() == shoppers
    assert state_bytes(learner) == before


def check_sampled_columns_are_judged_as_the_whole_catalogue(make: MakeLearner) -> None:
    sampling, whole = make(negatives=10), make(negatives=10)
    events = paired_stream(100, items=ITEMS, seed=1)
    learn(sampling, events)
    learn(whole, events)
    sampling.settings = sampling.settings.model_copy(update={"judged_items": 1})
    batch, complete = sampling.observe(events[:20]), whole.observe(events[:20])
    assert batch.columns is not None
    assert len(batch.columns) < ITEMS
    torch.testing.assert_close(sampling.judge(batch), whole.judge(complete)[:, torch.from_numpy(batch.columns)])
    assert sampling.learn(batch) == pytest.approx(whole.learn(complete), rel=1e-5)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_learner(check: Callable[[MakeLearner], None], make: MakeLearner) -> None:
    check(make)


# ---- what a policy learns, and what it leaves alone

LEARNT = {
    "live": {"heads", "global_preference", "residuals.query", "residuals.candidate", "lora", "served_lora", "text"},
    "live-without-lora": {"heads", "global_preference", "residuals.query", "residuals.candidate"},
    "frozen": set(),
    "popularity": {"heads"},
    "cooccurrence": {"heads"},
}
LEARNT["live-without-second-stage"] = LEARNT["live"]
FITTED = {
    "live": FEATURES,
    "live-without-second-stage": FEATURES,
    "live-without-lora": FEATURES,
    "frozen": (),
    "popularity": (*COUNTER_FEATURES[:2], "click_through"),
    "cooccurrence": COUNTER_FEATURES,
}


def test_a_policy_moves_what_it_is_about_and_nothing_else(policy: str, make: MakeLearner) -> None:
    learner = make()
    before = state_bytes(learner)
    learn(learner, paired_stream(400, items=ITEMS, seed=1))
    after = state_bytes(learner)
    changed = {name.split(".layer")[0].split(".base_model")[0] for name in after if after[name] != before[name]}
    assert {name for name in changed if not name.startswith("counters.")} == LEARNT[policy]


def test_a_head_weighs_only_the_features_of_its_policy(policy: str, make: MakeLearner) -> None:
    learner = make()
    start = learner.ranker.heads.clone()
    learn(learner, paired_stream(400, items=ITEMS, seed=1))
    moved = {name for name, old, new in zip(FEATURES, start, learner.ranker.heads, strict=True) if old != new}
    assert moved <= set(FITTED[policy])
    # Without lists and searches; and one more may have nothing to say in this stream.
    silent = {"click_through", "passed_over_affinity", "passed_over_affinity_squared", *QUERY_FEATURES}
    assert not moved & silent
    assert len(moved) >= len(set(FITTED[policy]) - silent) - 1
    used = set(AFFINITY_FEATURES) if policy == "frozen" else set(FITTED[policy])
    assert {name for name, weight in zip(FEATURES, learner.ranker.heads, strict=True) if weight != 0} <= used


def test_learning_a_batch_again_lowers_its_loss(policy: str, make: MakeLearner) -> None:
    learner = make()
    learn(learner, paired_stream(50, items=ITEMS, seed=1))
    batch = learner.observe(paired_stream(50, items=ITEMS, seed=2))
    losses = [learner.learn(batch) for _ in range(20)]
    if policy == "frozen":
        assert losses == [losses[0]] * 20
    else:
        assert losses[-1] < losses[0] - 0.02
        assert min(losses) > 0


def hits(learner: Learner, events: Sequence[Bought], cutoff: int) -> tuple[int, int]:
    """Events whose item is within the cutoff, ties counted against it and for it; judged, then learnt."""
    strict = lenient = 0
    for chunk in in_batches(events, 100):
        batch = learner.observe(chunk)
        scores = learner.judge(batch)
        own = scores.gather(1, torch.from_numpy(batch.items)[:, None])
        strict += int(((scores >= own).sum(dim=1) <= cutoff).sum())
        lenient += int(((scores > own).sum(dim=1) < cutoff).sum())
        learner.learn(batch)
    return strict, lenient


def test_nothing_beats_chance_on_random_items(make: MakeLearner) -> None:
    """A leak of the event into its own judgement would show here first."""
    items, events, cutoff = 150, 3_000, 20
    strict, lenient = hits(make(items=items), random_stream(events, items=items, seed=7), cutoff)
    chance = cutoff / items
    spread = 4 * sqrt(events * chance * (1 - chance))  # 4 standard deviations of a binomial
    assert strict <= events * chance + spread
    assert lenient >= events * chance - spread


def test_what_can_be_learnt_is_learnt(policy: str, make: MakeLearner) -> None:
    """Every second event follows from the one before it: half of all events can be foreseen, by who counts pairs."""
    events = 2_000
    strict, _ = hits(make(items=100), paired_stream(events, items=100, seed=3), cutoff=1)
    foreseen = {"live", "live-without-lora", "live-without-second-stage", "cooccurrence"}
    assert (strict / events > 0.3) == (policy in foreseen)


def test_lists_teach_what_is_clicked(policy: str, make: MakeLearner) -> None:
    learner = make()
    stream = shown_stream(500, items=ITEMS, seed=1, liked=20)
    learn_shown(learner, stream[:400])
    above = []
    for shown, _ in stream[400:]:
        scores = learner.judge_lists(learner.observe_lists([shown])).scores[0]
        liked = torch.tensor([int(item_id.removeprefix("item-")) < 20 for item_id in shown.item_ids])
        if liked.any() and not liked.all():
            above.append(float((scores[liked][:, None] > scores[~liked]).float().mean()))
    share = sum(above) / len(above)
    assert (share > 0.8) == (policy != "frozen")
