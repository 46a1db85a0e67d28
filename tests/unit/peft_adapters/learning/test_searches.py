"""LoRA learns from searches: what an event can still teach, the contrastive loss, and the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import Bought, paired_stream, tiny_encoder, tiny_learner, titled

from peft_adapters.learning import searches as searches_module
from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lora_schedule import Schedule
from peft_adapters.learning.lora_trial import LoraTrial
from peft_adapters.learning.searches import Searches, SearchLog, search_loss
from peft_adapters.settings import LearnerSettings

ITEMS = 24
TITLES = [title for _, title in titled(ITEMS)]


def batch_of(learner: Learner, *pairs: tuple[str | None, int]) -> Batch:
    """Observe one event per pair of query and item."""
    return learner.observe(
        [Bought(f"u-{n}", None, f"item-{row}", n, 1.0, query) for n, (query, row) in enumerate(pairs)]
    )


def teaches(log: SearchLog, learner: Learner, *pairs: tuple[str | None, int]) -> list[float]:
    found = log.add(batch_of(learner, *pairs))
    return [] if found is None else found.weight.tolist()


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_learner(LearnerSettings(), items=ITEMS)


class TestSearchLog:
    def test_an_event_teaches_less_the_more_is_known(self, learner: Learner) -> None:
        log = SearchLog()
        assert teaches(log, learner, ("mug", 1), ("Mug", 2), ("mug", 1), ("lamp", 1)) == pytest.approx(
            [1, 5 / 6, 5 / 7 / 2, 1]
        )
        assert log.evidence == pytest.approx(2 + 5 / 6 + 5 / 14)
        assert teaches(log, learner, ("mug", 1)) == pytest.approx([5 / 8 / 3])

    def test_what_each_event_of_the_batch_can_still_teach(self, learner: Learner) -> None:
        found = SearchLog().add(batch_of(learner, (None, 1), ("mug", 2), (None, 2), ("mug", 2)))
        assert found is not None
        assert found.novelty.tolist() == pytest.approx([1, 1, 1, 5 / 6 / 2])

    def test_queries_that_are_held_out_become_known_but_not_learnt(self, learner: Learner) -> None:
        log = SearchLog(holds_out=True)
        held_out = next(f"mug {n}" for n in range(200) if not log._learns(f"mug {n}"))
        found = log.add(batch_of(learner, (held_out, 1), (held_out, 2), ("lamp", 3)))
        assert found is not None
        assert found.novelty.tolist() == pytest.approx([1, 5 / 6, 1])
        assert (found.queries, found.items.tolist(), log.evidence) == (["lamp"], [3], 1)
        assert (log.knows(held_out), log.knows("lamp")) == (False, True)
        alone = log.add(batch_of(learner, (held_out, 1)))
        assert alone is not None
        assert (len(alone), alone.evidence) == (0, 0)
        assert alone.novelty.tolist() == pytest.approx([5 / 7 / 2])

    def test_events_without_a_query_are_left_out(self, learner: Learner) -> None:
        log = SearchLog()
        assert log.add(batch_of(learner, (None, 1), (None, 2))) is None
        found = log.add(batch_of(learner, (None, 1), ("mug", 2)))
        assert found is not None
        assert (found.queries, found.items.tolist(), found.query.tolist()) == (["mug"], [2], [0])

    def test_known_items_are_those_of_all_events_so_far(self, learner: Learner) -> None:
        log = SearchLog()
        log.add(batch_of(learner, ("mug", 1)))
        found = log.add(batch_of(learner, ("mug", 3), ("lamp", 2)))
        assert found is not None
        assert [rows.tolist() for rows in found.known] == [[2], [1, 3]]

    def test_some_queries_are_held_out_for_good_where_that_is_asked_for(self, learner: Learner) -> None:
        """However few queries a shop has, some of them tell what LoRA is worth for those that it has not learnt."""
        log, queries = SearchLog(holds_out=True), [f"query {n}" for n in range(160)]
        for _ in range(2):
            log.add(batch_of(learner, *((query, 1) for query in queries)))
        held_out = [query for query in queries if not log.knows(query)]
        assert 4 <= len(held_out) <= 20
        again = log.add(batch_of(learner, *((query.upper(), 2) for query in held_out)))
        assert again is not None
        assert (len(again), again.evidence) == (0, 0)
        assert len(teaches(SearchLog(), learner, *((query, 1) for query in held_out))) == len(held_out)

    def test_memory_is_bounded_and_the_least_recent_pair_goes_first(
        self, learner: Learner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(searches_module, "KEPT_PAIRS", 2)
        log = SearchLog()
        log.add(batch_of(learner, ("mug", 1), ("lamp", 2), ("mug", 1), ("rug", 3)))
        assert len(log) == 2
        assert teaches(log, learner, ("lamp", 2), ("mug", 1)) == pytest.approx([1, 1])  # both dropped by now
        assert len(log) == 2

    @given(st.lists(st.tuples(st.sampled_from(["mug", "lamp", "rug", None]), st.integers(0, 5)), max_size=30))
    def test_a_restored_log_goes_on_as_the_log_itself(self, pairs: Sequence[tuple[str | None, int]]) -> None:
        learner, log, restored = _LEARNER, SearchLog(), SearchLog()
        if pairs:
            log.add(batch_of(learner, *pairs))
        restored.load_state_dict(log.state_dict())
        rest = [("mug", 1), ("lamp", 4), ("rug", 0)]
        assert teaches(restored, learner, *rest) == teaches(log, learner, *rest)
        assert (restored.evidence, len(restored)) == (log.evidence, len(log))

    def test_an_earlier_checkpoint_has_no_searches(self) -> None:
        log = SearchLog()
        log.load_state_dict({})
        assert (len(log), log.evidence) == (0, 0)

    def test_a_checkpoint_holds_no_text_of_a_query(self, learner: Learner) -> None:
        log = SearchLog()
        log.add(batch_of(learner, ("private words", 1)))
        assert all(
            isinstance(value, torch.Tensor) and value.dtype != torch.uint8 for value in log.state_dict().values()
        )


_LEARNER = tiny_learner(LearnerSettings(), items=ITEMS)


def loss_of(query: torch.Tensor, items: torch.Tensor, rows: Sequence[int], known: Sequence[Sequence[int]]) -> float:
    found = Searches(
        queries=[str(place) for place in range(len(query))],
        query=np.arange(len(query)),
        items=np.array(rows),
        weight=torch.ones(len(query)),
        known=[np.array(of_query) for of_query in known],
        evidence=float(len(query)),
        novelty=torch.ones(len(query)),
    )
    generator = np.random.default_rng(0)
    return float(search_loss(found, query, lambda kept: items[kept], items=len(items), generator=generator))


def test_known_items_are_no_negatives() -> None:
    items, query = torch.eye(3), torch.tensor([[0.6, 0.8, 0.0]])
    assert loss_of(query, items, [0], [[0]]) > 4  # the other one is nearer
    assert loss_of(query, items, [0], [[0, 1]]) < 0.01


def search_stream(events: int, *, seed: int = 0) -> list[Bought]:
    """Searches for words of an item's title after words that say nothing: LoRA can learn to overlook these."""
    rng = np.random.default_rng(seed)
    return [
        Bought(f"s{seed}-{n}", None, f"item-{row}", 60_000 * n, 1.0, _query(TITLES[row].split()[:-1], rng))
        for n, row in enumerate(rng.integers(ITEMS, size=events).tolist())
    ]


def _query(title: Sequence[str], rng: np.random.Generator) -> str:
    return " ".join(["please", "find", "me", "some", *rng.permutation(title)[: max(1, len(title) - 1)]])


def mean_rank(learner: Learner, events: Sequence[Bought]) -> float:
    """Mean rank of the events' items by the cosine of query and text under the trained weights."""
    text = learner.catalogue.vectors(learner.encoder.suffix, range(ITEMS))
    query = learner._queries.of_distinct([str(event.query) for event in events], learner.encoder.suffix)
    scores = query @ text.T
    own = torch.tensor([learner.catalogue.rows[event.item_id] for event in events])[:, None]
    return float((scores > scores.gather(1, own)).sum(dim=1).float().mean())


SEARCHES = LearnerSettings(lora_every_events=8, lora_learning_rate=0.01, residuals=False)


def test_lora_learns_what_queries_mean() -> None:
    settings = SEARCHES.model_copy(update={"lora_learning_rate": 0.03})
    learner, stream = tiny_learner(settings, items=ITEMS), search_stream(640)
    before = mean_rank(learner, stream)
    for start in range(0, len(stream), 64):
        learner.learn(learner.observe(stream[start : start + 64]))
    assert mean_rank(learner, stream) < before - 0.3


def test_searches_with_lists_are_learnt_too() -> None:
    """Where all clicks come in lists, LoRA takes no steps but those on searches."""
    learner = tiny_learner(SEARCHES, items=ITEMS)
    learner.ranker.counters.clicked += 1e6
    learner.ranker.counters.events += 1e6
    learner.learn(learner.observe(paired_stream(32, items=ITEMS, seed=0)))
    assert not any(value.any() for name, value in learner.encoder.lora_state().items() if "lora_B" in name)
    learner.learn(learner.observe(search_stream(32)))
    assert all(value.any() for name, value in learner.encoder.lora_state().items() if "lora_B" in name)


def test_searches_are_known_whether_lora_learns_or_not() -> None:
    for settings, lora in ((SEARCHES, False), (SEARCHES.model_copy(update={"lora": False}), True)):
        learner = tiny_learner(settings, items=ITEMS)
        learner.learn(learner.observe(search_stream(12)), lora=lora)
        assert learner.lora_steps.searches.evidence > 8
        assert not any(value.any() for name, value in learner.encoder.lora_state().items() if "lora_B" in name)


def test_a_pair_that_is_repeated_soon_moves_nothing() -> None:
    learner = tiny_learner(SEARCHES, items=ITEMS)
    same = [Bought(f"u-{n}", None, "item-3", n, 1.0, "a mug") for n in range(16)]
    steps = []
    for _ in range(20):
        learner.learn(learner.observe(same))
        steps.append(learner.lora_steps.optimiser._steps)
    assert steps[-1] == steps[4]
    assert learner.lora_steps.searches.evidence < 8 * 2


def test_no_frequency_is_no_step_and_a_half_is_half_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for frequency in (0.0, 0.5, 1.0):
        monkeypatch.setattr(LoraTrial, "frequency", frequency)
        learner = tiny_learner(SEARCHES, items=ITEMS)
        for seed in range(8):
            learner.learn(learner.observe(search_stream(9, seed=seed)))
        steps.append(learner.lora_steps.optimiser._steps)
    assert steps == [0, 4, 8]


@pytest.mark.parametrize("frequency", [1.0, 0.3])
def test_evidence_at_is_the_inverse_of_steps(frequency: float) -> None:
    schedule = Schedule(every=96, slows=100)
    schedule.frequency = frequency
    for steps in (1, 7, 100):
        due = schedule.evidence_at(steps)
        assert (schedule.steps(due * 0.999), schedule.steps(due * 1.001)) == (steps - 1, steps)


def test_two_layers_learn_at_half_the_rate() -> None:
    rates = [
        tiny_learner(SEARCHES, encoder=tiny_encoder(lora_layers=layers)).lora_steps.optimiser._learning_rate
        for layers in (1, 2)
    ]
    assert rates == [0.01, 0.005]


def test_a_mixed_batch_learns_from_both_kinds() -> None:
    learner = tiny_learner(SEARCHES, items=ITEMS)
    mixed = [*search_stream(16), *paired_stream(16, items=ITEMS, seed=1)]
    batch = learner.observe(mixed)
    assert batch.queries is not None
    assert sum(query is not None for query in batch.queries) == 16
    one, other = (tiny_learner(SEARCHES, items=ITEMS) for _ in range(2))
    one.learn(one.observe(mixed))
    other.learn(replace(other.observe(mixed), queries=None))
    pairs = zip(one.encoder.lora_state().values(), other.encoder.lora_state().values(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
