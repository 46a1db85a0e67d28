"""How the learner samples, corrects, counts and refreshes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import Bought, paired_stream, random_stream, tiny_learner, titled

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.ranker import text_evidence
from peft_adapters.settings import LearnerSettings

SKEW = [1 / (rank + 1) for rank in range(200)]  # of a Zipf-like shop


def trained(settings: LearnerSettings, batches: int, *, size: int = 16) -> Learner:
    learner = tiny_learner(settings, items=len(SKEW))
    for number in range(batches):
        learner.learn(learner.observe(random_stream(size, items=len(SKEW), seed=number, weights=SKEW)))
    return learner


def draws(learner: Learner, count: int) -> list[Batch]:
    """The samples of so many steps, nothing learnt between them."""
    batches = []
    for step in range(count):
        learner.batches_learned = step  # seeds the draw
        batches.append(learner.observe([Bought("ann", None, "item-0", step)]))
    return batches


def test_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`features` must be among .*, got \['charm'\]"):
        tiny_learner(LearnerSettings(features=("transition", "charm")))


def test_a_small_catalogue_is_used_whole_and_uncorrected() -> None:
    learner = tiny_learner(LearnerSettings(negatives=30), items=30)
    batch = learner.observe(random_stream(5, items=30, seed=0))
    assert batch.candidates.tolist() == list(range(30))
    assert not batch.log_expected.any()


def test_positives_are_always_among_the_sorted_candidates() -> None:
    learner = tiny_learner(LearnerSettings(negatives=10), items=100)
    batch = learner.observe(random_stream(20, items=100, seed=0))
    assert set(batch.items) <= set(batch.candidates)
    assert batch.candidates.tolist() == sorted(set(batch.candidates.tolist()))
    assert len(batch.candidates) <= 30


def test_the_correction_is_the_log_of_how_often_an_item_is_drawn() -> None:
    learner = trained(LearnerSettings(negatives=50, lora=False, residuals=False), 20)
    sampled = draws(learner, 300)
    counts = np.zeros(len(SKEW))
    expected = np.full(len(SKEW), np.nan)
    for batch in sampled:
        counts[batch.candidates] += 1
        expected[batch.candidates] = np.exp(batch.log_expected.numpy())
    drawn = np.arange(len(SKEW)) != 0  # item 0 is the positive, there every time
    spread = np.sqrt(expected * (1 - expected) / len(sampled))
    assert float(np.nanmax((np.abs(counts / len(sampled) - expected) / spread)[drawn])) < 4.5


def test_corrected_samples_count_the_whole_catalogue() -> None:
    """Each candidate stands for 1 / Q items: on average the sample weighs what the catalogue does."""
    learner = trained(LearnerSettings(negatives=50, lora=False, residuals=False), 20)
    weights = [torch.exp(-batch.log_expected[batch.candidates != 0]).sum().item() for batch in draws(learner, 200)]
    error = np.std(weights) / np.sqrt(len(weights))
    assert abs(np.mean(weights) - (len(SKEW) - 1)) < 4 * error


def test_sampled_negatives_teach_what_the_whole_catalogue_teaches() -> None:
    """Without the correction popular items, sampled more often, would be pushed down and the head would end far off."""
    head = {"lora": False, "residuals": False, "features": ("popularity_slow",)}
    whole = trained(LearnerSettings(negatives=len(SKEW), **head), 250)
    sampled = trained(LearnerSettings(negatives=50, **head), 250)
    assert float(whole.ranker.heads[1]) > 0.5
    assert float(sampled.ranker.heads[1]) == pytest.approx(float(whole.ranker.heads[1]), abs=0.15)


def test_a_step_draws_by_its_number_alone() -> None:
    """A resumed learner draws what an unkilled one would have drawn."""
    first, second = (tiny_learner(LearnerSettings(negatives=10), items=100) for _ in range(2))
    second.observe(random_stream(5, items=100, seed=3))
    event = [Bought("ann", None, "item-0", 0)]
    assert first.observe(event).candidates.tolist() == second.observe(event).candidates.tolist()
    first.learn(first.observe(event))
    assert first.observe(event).candidates.tolist() != second.observe(event).candidates.tolist()


def test_observe_says_what_is_new() -> None:
    learner = tiny_learner(LearnerSettings(), items=10)
    learner.learn(learner.observe([Bought("ann", None, "item-1", 0)]))
    batch = learner.observe(
        [Bought("ann", None, "item-1", 1), Bought("bob", None, "item-2", 2), Bought("bob", None, "item-2", 3)]
    )
    assert batch.first_of_item.tolist() == [False, True, True]  # until the batch is learnt
    assert batch.new_shopper.tolist() == [False, True, False]
    assert batch.before == [[1], [], [2]]
    assert len(batch) == 3


def test_counts_what_it_learnt() -> None:
    learner = tiny_learner(LearnerSettings(), items=10)
    for number in range(3):
        learner.learn(learner.observe(random_stream(7, items=10, seed=number)))
    assert (learner.batches_learned, learner.events_learned) == (3, 21)
    assert learner.ranker.counters.events.sum() == 21


def test_lora_moves_as_long_as_texts_count_and_item_vectors_follow_every_few_steps() -> None:
    settings = LearnerSettings(lora_every_events=8, lora_refresh_steps=3, lora_ahead_batches=1, lora_learning_rate=0.01)
    learner = tiny_learner(settings, items=30)
    stepped, followed = [], []
    for number in range(60):
        text, lora = learner.ranker.text.clone(), learner.encoder.lora_state()
        learner.learn(learner.observe(paired_stream(20, items=30, seed=number)))
        now = learner.encoder.lora_state()
        stepped.append(any(not torch.equal(now[name], lora[name]) for name in now))
        followed.append(not torch.equal(learner.ranker.text, text))
    assert stepped[:3] == [True] * 3  # what is bought is new
    assert 4 <= sum(stepped[-20:]) <= 9  # by the formula 52 of 400 events, which is 6.6 steps
    assert sum(stepped) // 5 <= sum(followed) <= sum(stepped) // 3 + 1
    assert all(step for step, follows in zip(stepped, followed, strict=True) if follows)


def test_the_first_of_a_batch_are_judged_as_in_the_whole_and_learning_is_the_same() -> None:
    settings = LearnerSettings(negatives=30, lora=False)
    one, other = (tiny_learner(settings, items=100) for _ in range(2))
    for number in range(5):
        stream = random_stream(20, items=100, seed=number)
        whole, narrow = one.observe(stream), other.observe(stream, whole=False)
        first = other.first_of(narrow, 6)
        assert whole.columns is first.columns is None
        assert narrow.columns is not None
        torch.testing.assert_close(other.judge(first), one.judge(whole)[:6])
        assert (first.items.tolist(), first.before) == (whole.items[:6].tolist(), whole.before[:6])
        one.learn(whole)
        other.learn(narrow)
    assert torch.equal(one.ranker.heads, other.ranker.heads)
    assert all(torch.equal(one.ranker.residuals[role], other.ranker.residuals[role]) for role in ("query", "candidate"))


def test_where_texts_wait_all_else_is_learnt() -> None:
    settings = LearnerSettings(lora_every_events=1, lora_refresh_steps=1, lora_ahead_batches=3)
    learner = tiny_learner(settings, items=30)
    learner.learn(learner.observe(paired_stream(20, items=30, seed=0)))
    lora, heads, ahead = learner.encoder.lora_state(), learner.ranker.heads.clone(), learner.lora_steps.next_adapter
    assert ahead is not None
    made = len(ahead.texts)
    learner.learn(learner.observe(paired_stream(20, items=30, seed=1)), lora=False)
    assert all(torch.equal(value, lora[name]) for name, value in learner.encoder.lora_state().items())
    assert len(ahead.texts) == made
    assert not torch.equal(learner.ranker.heads, heads)
    assert learner.events_learned == 40


def test_steps_of_lora_come_ever_more_seldom_as_they_add_up() -> None:
    taken = {}
    for slowdown in (4.0, 1e9):
        settings = LearnerSettings(lora_every_events=2, lora_refresh_steps=100, lora_slowdown_steps=slowdown)
        learner, steps = tiny_learner(settings, items=60), []
        for number in range(24):
            before = learner.encoder.lora_state()
            learner.learn(learner.observe(random_stream(4, items=60, seed=number)))
            now = learner.encoder.lora_state()
            steps.append(any(not torch.equal(now[name], before[name]) for name in now))
        taken[slowdown] = steps
        evidence = text_evidence(learner.ranker.counters.events)
    assert all(taken[1e9])  # two events a step, four a batch
    assert all(taken[4.0][:2])
    assert sum(taken[4.0]) == int(4 * math.log1p(evidence / 8))
    assert sum(taken[4.0][12:]) < sum(taken[4.0][:12])


def lora_after(batches: int, **settings: Any) -> dict[str, torch.Tensor]:
    learner = tiny_learner(
        LearnerSettings(lora_every_events=1, lora_refresh_steps=1, lora_ahead_batches=1, **settings), items=30
    )
    for number in range(batches):
        learner.learn(learner.observe(paired_stream(20, items=30, seed=number)))
    assert all(
        torch.equal(value, learner.lora_steps.served[name]) for name, value in learner.encoder.lora_state().items()
    )
    with torch.inference_mode():  # outside of steps nothing is dropped
        torch.testing.assert_close(learner.ranker.text, learner.catalogue.vectors(learner.encoder.suffix, range(30)))
    return learner.encoder.lora_state()


def test_dropout_is_drawn_by_the_seed_and_the_step_alone() -> None:
    first = lora_after(2, lora_dropout=0.3)
    torch.rand(100)
    same, without = lora_after(2, lora_dropout=0.3), lora_after(2)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not any(torch.equal(value, without[name]) for name, value in first.items() if "lora_B" in name)


def test_a_step_waits_for_as_many_batches_as_it_accumulates() -> None:
    start = tiny_learner(LearnerSettings()).encoder.lora_state()
    moved = [
        any(not torch.equal(value, start[name]) for name, value in lora_after(batches, lora_accumulate=3).items())
        for batches in (1, 2, 3)
    ]
    assert moved == [False, False, True]


def test_item_vectors_are_those_of_the_lora_that_is_served() -> None:
    settings = LearnerSettings(lora_every_events=1, lora_refresh_steps=1, lora_ahead_batches=1)
    learner = tiny_learner(settings, items=30)
    learner.learn(learner.observe(paired_stream(20, items=30, seed=0)))
    now = learner.encoder.lora_state()
    assert all(torch.equal(now[name], learner.lora_steps.served[name]) for name in now)
    with torch.inference_mode():
        expected = learner.catalogue.vectors(learner.encoder.suffix, range(30))
    torch.testing.assert_close(learner.ranker.text, expected)


def test_vectors_of_a_new_lora_are_made_over_several_batches_and_served_at_once() -> None:
    settings = LearnerSettings(lora_every_events=1, lora_refresh_steps=1, lora_ahead_batches=4, lora_learning_rate=0.02)
    learner = tiny_learner(settings, items=30)
    before, made, coming = learner.ranker.text.clone(), [], {}
    for number in range(4):
        learner.learn(learner.observe(paired_stream(20, items=30, seed=number)))
        ahead = learner.lora_steps.next_adapter
        made.append(None if ahead is None else len(ahead.texts))
        if ahead is not None:
            coming = dict(ahead.lora)
            assert torch.equal(learner.ranker.text, before)
        if number == 1:
            learner.add_items([("item-4", "something else entirely"), ("late", "a late bird")])
            before = learner.ranker.text.clone()
    assert made == [8, 16, 24, None]
    assert not torch.equal(learner.ranker.text, before)
    assert all(torch.equal(value, learner.lora_steps.served[name]) for name, value in coming.items())
    with torch.inference_mode():
        expected = learner.catalogue.vectors(learner.lora_steps.served_suffix, range(31))
    torch.testing.assert_close(learner.ranker.text, expected)


def test_a_changed_title_changes_its_vector_alone() -> None:
    learner = tiny_learner(LearnerSettings(), items=10)
    learner.learn(learner.observe(random_stream(20, items=10, seed=0)))
    before = learner.ranker.text.clone()
    residuals = {role: rows.clone() for role, rows in learner.ranker.residuals.items()}
    learner.add_items([("item-4", "something else entirely"), *titled(3)])
    changed = [row for row in range(10) if not torch.equal(before[row], learner.ranker.text[row])]
    assert changed == [4]
    assert all(torch.equal(rows, residuals[role]) for role, rows in learner.ranker.residuals.items())


def test_items_that_come_between_observing_and_learning_do_not_disturb_the_batch() -> None:
    learner = tiny_learner(LearnerSettings(lora_every_events=1, lora_refresh_steps=1), items=10)
    batch = learner.observe(random_stream(20, items=10, seed=0))
    learner.add_items([("late", "a late bird")])
    assert learner.learn(batch) > 0
    assert len(learner.ranker) == 11
    assert learner.ranker.counters.events.tolist()[10] == 0


def test_texts_with_gradients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tiny_learner(LearnerSettings(lora_items=8, lora_every_events=1, lora_refresh_steps=100), items=60)
    sizes: list[int] = []
    vectors = Catalogue.vectors

    def spy(self: Catalogue, suffix: object, rows: list[int]) -> torch.Tensor:
        sizes.append(len(rows))
        return vectors(self, suffix, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Catalogue, "vectors", spy)
    learner.learn(learner.observe([Bought("ann", None, f"item-{number % 3}", number) for number in range(10)]))
    assert sizes
    assert max(sizes) <= 8


def test_touched_rows_are_those_whose_residuals_moved_since_the_mark() -> None:
    learner = tiny_learner(LearnerSettings(negatives=5, residual_learning_rate=0.01), items=60)
    for number in range(4):
        learner.learn(learner.observe(random_stream(20, items=60, seed=number)))
    learner.mark_published()
    assert learner.touched == {"query": set(), "candidate": set()}
    before = {role: rows.clone() for role, rows in learner.ranker.residuals.items()}
    learner.learn(learner.observe(random_stream(5, items=60, seed=9)))
    for role, rows in learner.ranker.residuals.items():
        moved = {row for row in range(60) if not torch.equal(rows[row], before[role][row])}
        assert moved
        assert moved <= learner.touched[role]
        assert len(learner.touched[role]) < 60


def test_loss_is_in_nats_an_event_whatever_the_batch() -> None:
    """A head that weighs nothing spreads its bets evenly: the log of the number of items, at any size of batch."""
    for size in (1, 50):
        learner = tiny_learner(LearnerSettings(features=(), lora=False, residuals=False), items=40)
        loss = learner.learn(learner.observe(random_stream(size, items=40, seed=0)))
        assert loss == pytest.approx(np.log(40), rel=1e-5)
