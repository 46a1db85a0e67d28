"""Built models: they score as the learner does, deltas add up to the full bundle, and the old model is not changed."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from counted_vectors import ITEMS, CountingCatalogue, scores
from learnt_chain import Publications, catalogue_of
from tiny_model import Listed, random_stream, tiny_encoder, tiny_learner

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import BuildStoppedError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.warm_start import load_bundle_into
from peft_adapters.ranking.shoppers import pad
from peft_adapters.serving import model_builder
from peft_adapters.serving.model_builder import build_model, refresh_model
from peft_adapters.settings import LearnerSettings


def test_a_worker_scores_as_the_learner_does_whatever_order_its_items_came_in(
    publications: Publications, encoder: Encoder
) -> None:
    learner = publications.learner
    learner.add_items(ITEMS)
    for _ in range(4):
        publications.learn(64)
    bundle = publications.read(publications.full(1))
    catalogue = catalogue_of(encoder, [*reversed(ITEMS)])
    model = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
    batch = learner.observe(random_stream(16, items=30, seed=99, users=8))
    rows = [[learner.catalogue.ids[row] for row in items if row >= 0] for items in batch.contexts.items]
    own = [
        (model.row_of[[catalogue.rows[item] for item in items]].tolist() if items else [], ages[: len(items)].tolist())
        for items, ages in zip(rows, batch.contexts.ages, strict=True)
    ]
    assert any(rows)
    assert model.item_ids == learner.catalogue.ids
    torch.testing.assert_close(model.ranker.score(pad(own)), learner.judge(batch), atol=2e-3, rtol=2e-3)


def test_deltas_add_up_to_the_full_bundle_bit_for_bit(publications: Publications, encoder: Encoder) -> None:
    publications.learner.add_items(ITEMS[:20])
    publications.learn(64)
    bundles = [publications.read(publications.full(1))]
    catalogue = catalogue_of(encoder, ITEMS)
    model = build_model(bundles, previous=None, catalogue=catalogue, encoder=encoder)
    publications.learner.add_items(ITEMS[20:])
    for version in (2, 3, 4):
        publications.learn(64)
        if version == 4:
            full = publications.read(publications.full(4, mark=False))
        bundles.append(publications.read(publications.delta(version)))
        model = build_model(bundles[-1:], previous=model, catalogue=catalogue, encoder=encoder)
    at_once = build_model(bundles, previous=None, catalogue=catalogue, encoder=encoder)
    alone = build_model([full], previous=None, catalogue=catalogue, encoder=encoder)
    assert [bundle.manifest.kind for bundle in bundles] == ["full", "delta", "delta", "delta"]
    assert scores(model, catalogue) == scores(at_once, catalogue) == scores(alone, catalogue)
    assert model.version == 4
    assert model.item_ids == alone.item_ids == publications.learner.catalogue.ids


def test_building_leaves_the_served_model_as_it_is(publications: Publications, encoder: Encoder) -> None:
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    catalogue = catalogue_of(encoder, ITEMS)
    old = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    before = scores(old, catalogue)
    publications.learn(64)
    new = build_model([publications.read(publications.delta(2))], previous=old, catalogue=catalogue, encoder=encoder)
    catalogue.upsert([("item-0", "another text"), ("new", "wholly new")])
    newer = refresh_model(new, catalogue=catalogue, encoder=encoder)
    assert scores(old, catalogue) == before
    assert scores(new, catalogue) != before
    assert scores(newer, catalogue)["item-0"] != scores(new, catalogue)["item-0"]


def test_an_item_without_text_keeps_its_row_and_is_offered_only_once_it_has_one(
    publications: Publications, encoder: Encoder
) -> None:
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    catalogue = catalogue_of(encoder, ITEMS[10:])
    bundle = publications.read(publications.full(1))
    model = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
    assert model.item_ids == [item for item, _ in ITEMS]
    assert not model.has_text[:10].any()
    assert model.has_text[10:].all()
    catalogue.upsert(ITEMS[:10])
    whole = refresh_model(model, catalogue=catalogue, encoder=encoder)
    straight = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
    assert whole.has_text.all()
    assert scores(whole, catalogue) == pytest.approx(scores(straight, catalogue), abs=1e-5)


def test_items_the_updater_does_not_know_yet_come_behind_and_move_when_it_does(
    publications: Publications, encoder: Encoder
) -> None:
    publications.learner.add_items(ITEMS[:20])
    publications.learn(64)
    catalogue = catalogue_of(encoder, [("only-here", "a vase"), *ITEMS])
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    assert model.item_ids[20:] == ["only-here", *(item for item, _ in ITEMS[20:])]
    assert model.has_text.all()
    assert scores(model, catalogue)["only-here"] != 0
    publications.learner.add_items(ITEMS[20:])
    publications.learn(64)
    model = build_model(
        [publications.read(publications.delta(2))], previous=model, catalogue=catalogue, encoder=encoder
    )
    assert model.item_ids == [*(item for item, _ in ITEMS), "only-here"]
    assert [model.row_of[catalogue.rows[item]] for item in model.item_ids] == list(range(31))


def test_a_shopper_s_item_that_came_after_the_build_is_left_out_of_the_context(
    publications: Publications, encoder: Encoder
) -> None:
    publications.learner.add_items(ITEMS)
    catalogue = catalogue_of(encoder, ITEMS)
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    context = model.context([30, 4], [0, 1])
    assert (context.items.tolist(), context.ages.tolist()) == ([[4]], [[1]])
    assert model.context([], []).items.shape == (1, 0)


def test_an_empty_catalogue_can_be_served(publications: Publications, encoder: Encoder) -> None:
    catalogue = catalogue_of(encoder, [])
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    assert len(model) == 0
    catalogue.upsert(ITEMS[:1])
    assert refresh_model(model, catalogue=catalogue, encoder=encoder).item_ids == ["item-0"]


def test_a_build_told_to_stop_ends_between_two_chunks(
    publications: Publications, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_builder, "_STOP_CHUNK", 10)
    stop = threading.Event()

    class StoppedInTheFirstChunk(CountingCatalogue):
        def vectors(self, suffix: object, rows: Sequence[int]) -> torch.Tensor:
            stop.set()
            return super().vectors(suffix, rows)

    publications.learner.add_items(ITEMS)
    catalogue = StoppedInTheFirstChunk(catalogue_of(encoder, [])._cache)
    catalogue.upsert(ITEMS)
    bundle = publications.read(publications.full(1))
    with pytest.raises(BuildStoppedError):
        build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder, stop=stop)
    assert catalogue.computed == 10


def learn_lists(learner: Learner, lists: int, *, from_minute: int) -> None:
    """Learn lists with a click on the second item and, in every other list, a purchase of the third."""
    for minute in range(from_minute, from_minute + lists):
        ids = tuple(f"item-{(7 * minute + step) % 30}" for step in range(4))
        clicked = (False, True, minute % 2 == 0, False)
        shown = Listed(f"user-{minute % 8}", 60_000 * minute, ids, clicked, purchases=ids[2:3] if minute % 2 else ())
        learner.learn_lists(learner.observe_lists([shown]))


def test_a_worker_gives_the_learners_probabilities_of_what_is_shown_first(
    publications: Publications, encoder: Encoder
) -> None:
    learner = publications.learner
    learner.add_items(ITEMS)
    publications.learn(64)
    catalogue = catalogue_of(encoder, ITEMS)
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    assert model.ranker.score_with_probabilities(model.context([1], [0]))[1] == {}
    learn_lists(learner, 40, from_minute=0)
    model = build_model(
        [publications.read(publications.delta(2))], previous=model, catalogue=catalogue, encoder=encoder
    )
    before = model.ranker.score_with_probabilities(model.context([], []))[1]["click"]
    learn_lists(learner, 40, from_minute=40)
    model = build_model(
        [publications.read(publications.delta(3))], previous=model, catalogue=catalogue, encoder=encoder
    )
    for user in ("user-3", "nobody"):
        alone = [Listed(user, 10**8, (item_id,), (False,)) for item_id in learner.catalogue.ids]
        expected = learner.judge_lists(learner.observe_lists(alone)).probabilities
        items, ages = learner.shoppers.context(user, None, 10**8)[:2]
        scores, found = model.ranker.score_with_probabilities(model.context(items, ages))
        np.testing.assert_array_equal(scores, model.ranker.score(model.context(items, ages))[0].numpy())
        for outcome in ("click", "purchase"):
            np.testing.assert_allclose(found[outcome], expected[outcome], atol=1e-3, rtol=1e-3)
        few = model.ranker.score_with_probabilities(model.context(items, ages), np.array([2, 9]))[1]
        np.testing.assert_array_equal(few["purchase"], found["purchase"][[2, 9]])
    assert bool(items) == (user != "nobody")
    assert not np.array_equal(model.ranker.score_with_probabilities(model.context([], []))[1]["click"], before)


def test_who_begins_from_a_bundle_begins_with_its_probabilities(publications: Publications) -> None:
    publications.learner.add_items(ITEMS)
    learn_lists(publications.learner, 20, from_minute=0)
    bundle = publications.read(publications.full(1))
    other = tiny_learner(LearnerSettings(), encoder=tiny_encoder())
    load_bundle_into(other, bundle)
    ours, theirs = (one.lists.outcomes.probabilities() for one in (publications.learner, other))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours.click, theirs.click)
    assert ours.purchase is not None
    assert theirs.purchase is not None
    assert torch.equal(ours.purchase, theirs.purchase)
    learn_lists(other, 1, from_minute=20)
    after = other.lists.outcomes.probabilities()
    assert after is not None
    assert 0 < (after.click - ours.click).abs().max() < 0.1
