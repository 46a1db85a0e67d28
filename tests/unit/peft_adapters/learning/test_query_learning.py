"""What shoppers search for is part of the score: learnt from, resumed bit for bit, nothing where nobody searches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import Bought, Listed, paired_stream, shown_stream, state_bytes, tiny_encoder, tiny_learner, titled
from torch import Tensor

from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lists import observe_lists
from peft_adapters.learning.query_vectors import QueryVectorCache
from peft_adapters.lifecycle.checkpoint import learner_state, load_checkpoint, save_checkpoint
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.settings import FEATURES, GateSettings, LearnerSettings

ITEMS = 24
TITLES = dict(titled(ITEMS))
OWN = FEATURES.index("query_affinity")


def searches(events: int, *, seed: int = 0, every: int = 1) -> list[Bought]:
    """Events of random items; every so many of them come after a search for the item's title."""
    rng = np.random.default_rng(seed)
    return [
        Bought(f"user-{n % 9}", None, item, 60_000 * n, 1.0, TITLES[item] if n % every == 0 else None)
        for n, item in enumerate(f"item-{row}" for row in rng.integers(ITEMS, size=events).tolist())
    ]


def search_lists(lists: int, *, seed: int = 0) -> list[tuple[Listed, list[Bought]]]:
    """Lists of which that item is clicked whose title was searched for."""
    rng = np.random.default_rng(seed)
    stream = []
    for index in range(lists):
        ids = tuple(f"item-{row}" for row in rng.permutation(ITEMS)[:6])
        user, ts, wanted = f"user-{index % 9}", 60_000 * index, int(rng.integers(6))
        clicked = tuple(place == wanted for place in range(6))
        query = TITLES[ids[wanted]]
        stream.append(
            (Listed(user, ts, ids, clicked, query=query), [Bought(user, None, ids[wanted], ts + 9, 1.0, query)])
        )
    return stream


def forgets_searches(learner: Learner) -> Learner:
    """The same with no weight on searches yet."""
    for heads in (learner.ranker.heads, learner.positives.heads, learner.lora_steps.heads):
        heads[OWN] = 0.0
    for heads in (learner.lists.heads, learner.lists.served_heads):
        heads[OWN] = 0.0
    return learner


class TestVectors:
    def test_a_search_for_a_title_has_the_vector_of_its_item(self) -> None:
        learner = tiny_learner(LearnerSettings(), items=ITEMS)
        vectors = learner._query_vector(searches(4))
        rows = [learner.catalogue.rows[event.item_id] for event in searches(4)]
        assert vectors is not None
        torch.testing.assert_close(vectors, learner.ranker.text[rows])

    def test_who_did_not_search_has_none_and_where_nobody_did_there_is_nothing(self) -> None:
        learner = tiny_learner(LearnerSettings(), items=ITEMS)
        mixed = learner._query_vector(searches(4, every=2))
        assert mixed is not None
        assert mixed.any(dim=1).tolist() == [True, False, True, False]
        assert learner._query_vector(paired_stream(4, items=ITEMS, seed=0)) is None
        assert learner.observe(paired_stream(4, items=ITEMS, seed=0)).query_vector is None

    def test_what_is_kept_is_bounded_and_changes_no_bit(self) -> None:
        encoder = tiny_encoder()
        suffix, texts = encoder.merged(), [*TITLES.values()]
        known, fresh = QueryVectorCache(encoder, kept=8), QueryVectorCache(encoder, kept=8)
        known.vectors(texts[:5], suffix)
        for chosen in (texts[3:9], texts[:12], [texts[7], None, texts[7]]):
            one, other = known.vectors(chosen, suffix), fresh.vectors(chosen, suffix)
            assert isinstance(one, Tensor)
            assert isinstance(other, Tensor)
            assert torch.equal(one, other)
            assert len(known) <= 8
            fresh.clear()


def as_new(events: list[Bought], *, seed: int) -> list[Bought]:
    """The same events after queries that nobody typed before."""
    return [event._replace(query=f"{event.query} {seed}-{n}") for n, event in enumerate(events)]


def test_the_head_of_the_catalogue_learns_what_searches_say() -> None:
    learner = forgets_searches(tiny_learner(LearnerSettings(lora=False), items=ITEMS))
    for seed in range(6):
        learner.learn(learner.observe(as_new(searches(48, seed=seed), seed=seed)))
    assert learner.positives.heads[OWN] > 0.5
    assert learner.ranker.heads[OWN] == learner.positives.heads[OWN]
    batch = learner.observe(searches(24, seed=99))
    own = torch.from_numpy(batch.items)[:, None]

    def mean_rank(scores: Tensor) -> float:
        return float((scores > scores.gather(1, own)).sum(dim=1).float().mean())

    assert mean_rank(learner.judge(batch)) + 3 < mean_rank(learner.judge(replace(batch, query_vector=None)))


def test_what_a_few_queries_repeat_moves_the_heads_little() -> None:
    """Heads that learn which items a few queries' shoppers choose would rank these for any other query too."""
    few = [Bought(f"user-{n}", None, f"item-{n % 3}", 60_000 * n, 1.0, f"mug {n % 3}") for n in range(48)]
    moved = {}
    for kind in ("known", "new", "browsed"):
        learner = tiny_learner(LearnerSettings(lora=False, second_stage=False), items=ITEMS)
        initial = learner.positives.heads.clone()
        for seed in range(8):
            events = {"known": few, "new": as_new(few, seed=seed), "browsed": [e._replace(query=None) for e in few]}
            learner.learn(learner.observe(events[kind]))
        moved[kind] = float((learner.positives.heads - initial).norm())
        residual = learner.ranker.residuals["candidate"][learner.catalogue.rows["item-0"]]
        assert residual.any()
    assert moved["known"] < 0.3 * moved["new"]
    assert moved["new"] > 0.5


def test_the_heads_of_lists_and_probabilities_learn_it_too() -> None:
    learner = forgets_searches(tiny_learner(LearnerSettings(lora=False), items=ITEMS))
    for shown, clicks in search_lists(40):
        learner.learn(learner.observe(clicks))
        learner.learn_lists(learner.observe_lists([shown]))
    assert learner.lists.heads[OWN] > 0.5
    assert learner.lists.served_heads[OWN] > 0.5
    known = learner.lists.outcomes.probabilities()
    assert known is not None
    assert known.click[OWN] + known.click[OWN + 1] > 0.5  # the square says it too


def test_where_nobody_searches_the_weight_stays_and_no_other_feels_it() -> None:
    learners = [tiny_learner(LearnerSettings(lora_every_events=24), items=ITEMS) for _ in range(2)]
    forgets_searches(learners[1])
    for learner in learners:
        for shown, clicks in shown_stream(12, items=ITEMS, seed=0):
            if clicks:
                learner.learn(learner.observe(clicks))
            learner.learn_lists(learner.observe_lists([shown]))
    own, other = (learner.ranker.heads.clone() for learner in learners)
    assert learners[0].positives.heads[OWN] == 10.0
    own[OWN] = other[OWN] = 0.0
    assert torch.equal(own, other)
    states = [state_bytes(learner) for learner in learners]
    assert {name for name in states[0] if states[0][name] != states[1][name]} == {"heads"}


def test_lora_learns_from_searches_alone() -> None:
    """Without a past, nothing but the search says which item it is to be."""
    used = ("popularity_slow", "query_affinity")
    settings = LearnerSettings(lora_every_events=1, lora_learning_rate=0.02, residuals=False, features=used)
    learnt = [tiny_learner(settings, items=ITEMS) for _ in range(2)]
    events = [event._replace(user_id=f"user-{n}") for n, event in enumerate(searches(48))]
    for learner, own in zip(learnt, (events, [event._replace(query=None) for event in events]), strict=True):
        learner.learn(learner.observe(own))
    with_searches, without = (
        [bool(value.any()) for name, value in learner.encoder.lora_state().items() if "lora_B" in name]
        for learner in learnt
    )
    assert all(with_searches)
    assert not any(without)


@pytest.mark.parametrize("batches", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, batches: int) -> None:
    settings = LearnerSettings(lora_every_events=24, lora_refresh_steps=1, lora_replay_batches=2)
    unkilled = tiny_learner(settings, items=ITEMS)
    stream = search_lists(48)

    def learn(learner: Learner, part: list[tuple[Listed, list[Bought]]]) -> None:
        for start in range(0, len(part), 8):
            chunk = part[start : start + 8]
            clicks = [click for _, clicks in chunk for click in clicks]
            learner.learn(learner.observe([*clicks, *searches(24, seed=len(clicks), every=2)]))
            learner.learn_lists(learner.observe_lists([shown for shown, _ in chunk]))

    learn(unkilled, stream[: 8 * batches])
    assert any(name.endswith(".query_vector") for name in learner_state(unkilled)[0])
    save_checkpoint(tmp_path, 1, unkilled, {})
    resumed = tiny_learner(settings)
    load_checkpoint(tmp_path, 1, resumed)
    for learner in (unkilled, resumed):
        learn(learner, stream[8 * batches :])
    assert state_bytes(unkilled) == state_bytes(resumed)


def test_a_worker_scores_searches_as_the_learner_judges_them() -> None:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    learner.learn(learner.observe(searches(48)))
    batch = learner.observe(searches(12, seed=3, every=2))
    frozen = FrozenRanker(learner.ranker)
    torch.testing.assert_close(frozen.score(batch.contexts, query_vector=batch.query_vector), learner.judge(batch))
    few = np.array([2, 5, 7])
    assert batch.query_vector is not None
    for event, expected in enumerate(learner.judge(batch)[:, torch.from_numpy(few)].numpy()):
        one = slice(event, event + 1)
        scores, _ = frozen.score_with_probabilities(batch.contexts.part(one), few, batch.query_vector[one].numpy())
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_the_gate_compares_searches_with_the_live_adapter() -> None:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    gate = Gate(learner, PrequentialEvaluator(), GateSettings())
    for seed in range(3):
        batch = learner.observe(searches(32, seed=seed))
        gate.update(batch, learner.judge(batch))
        learner.learn(batch)
    assert len(gate._differences) == 96


def test_who_is_forgotten_leaves_no_search_behind() -> None:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    learner.observe(searches(4))
    assert len(learner._queries)
    learner.forget("user-0")
    assert len(learner._queries) == 0


def test_lists_that_come_without_vectors_have_none() -> None:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    shown, _ = search_lists(1)[0]
    counters, shoppers = learner.ranker.counters, learner.shoppers
    assert (
        observe_lists([shown], rows=learner.catalogue.rows, counters=counters, shoppers=shoppers).query_vector is None
    )
