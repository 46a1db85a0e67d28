"""Text vectors are encoded only where neither the previous model nor stored or prepared vectors can be reused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from counted_vectors import ITEMS, CountingCatalogue, scores
from learnt_chain import Publications, catalogue_of

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.serving.model_builder import build_model, refresh_model, start_next_adapter_vectors
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors


def counting(encoder: Encoder, items: Sequence[tuple[str, str]]) -> CountingCatalogue:
    catalogue = CountingCatalogue(catalogue_of(encoder, [])._cache)
    catalogue.upsert(items)
    return catalogue


def test_text_vectors_are_computed_again_only_where_text_or_adapter_changed(tmp_path: Path, encoder: Encoder) -> None:
    publications = Publications(tmp_path, lora=False)
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    catalogue = counting(encoder, ITEMS)
    model = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    assert catalogue.computed == 30
    publications.learn(64)
    model = build_model(
        [publications.read(publications.delta(2))], previous=model, catalogue=catalogue, encoder=encoder
    )
    assert catalogue.computed == 30
    catalogue.upsert([("item-4", "a new text"), ("new", "one more")])
    model = refresh_model(model, catalogue=catalogue, encoder=encoder)
    assert catalogue.computed == 32
    lora = {name: value + 0.01 for name, value in publications.learner.lora_steps.served.items()}
    publications.learner.lora_steps.load_lora(lora, lora)
    build_model([publications.read(publications.delta(3))], previous=model, catalogue=catalogue, encoder=encoder)
    assert catalogue.computed == 32 + 31


def test_vectors_made_ahead_are_used_by_the_version_that_brings_their_adapter(tmp_path: Path, encoder: Encoder) -> None:
    publications = Publications(tmp_path, lora_ahead_batches=3)
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    bundles = [publications.read(publications.full(1))]
    catalogue = counting(encoder, [*reversed(ITEMS)])
    model = build_model(bundles, previous=None, catalogue=catalogue, encoder=encoder)
    ahead = start_next_adapter_vectors(model, None, encoder)
    assert ahead is not None
    assert not ahead.advance(catalogue, 20)
    assert ahead.advance(catalogue, 20)
    catalogue.upsert([("item-4", "a new text"), ("new", "one more")])
    before = catalogue.computed
    for version in (2, 3):
        publications.learn(64)
        bundles.append(publications.read(publications.delta(version)))
        assert start_next_adapter_vectors(model, ahead, encoder) is ahead
        model = build_model(
            bundles[-1:], previous=model, catalogue=catalogue, encoder=encoder, next_adapter_vectors=ahead
        )
    assert catalogue.computed == before + 2 + 2  # the new texts, under either adapter
    without = build_model(bundles, previous=None, catalogue=catalogue, encoder=encoder)
    assert scores(model, catalogue) == pytest.approx(scores(without, catalogue), abs=1e-5)
    assert model.suffix is ahead.suffix


def test_going_back_to_an_adapter_of_before_encodes_what_has_changed_since_and_no_more(
    publications: Publications, tmp_path: Path, encoder: Encoder
) -> None:
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    first = publications.read(publications.full(1))
    lora = {name: value + 0.01 for name, value in publications.learner.lora_steps.served.items()}
    publications.learner.lora_steps.load_lora(lora, lora)
    publications.learn(64)
    second = publications.read(publications.full(2))
    catalogue = counting(encoder, [*reversed(ITEMS)])
    before = PreviousAdapterVectors(tmp_path / "texts", max_bytes=2**20)
    model = build_model([first], previous=None, catalogue=catalogue, encoder=encoder, previous_adapter_vectors=before)
    texts = {item_id: model.text_vectors[row].copy() for item_id, row in model.rows.items()}
    catalogue.upsert([("item-4", "a new text"), ("new", "one more")])
    model = build_model([second], previous=model, catalogue=catalogue, encoder=encoder, previous_adapter_vectors=before)
    assert catalogue.computed == 30 + 31
    model = build_model([first], previous=model, catalogue=catalogue, encoder=encoder, previous_adapter_vectors=before)
    assert catalogue.computed == 30 + 31 + 2
    del texts["item-4"]
    for item_id, vector in texts.items():
        assert np.array_equal(model.text_vectors[model.rows[item_id]], vector)
    without = build_model([first], previous=None, catalogue=catalogue, encoder=encoder)
    assert scores(model, catalogue) == pytest.approx(scores(without, catalogue), abs=1e-5)


@pytest.mark.parametrize("items", [ITEMS, []])
def test_a_version_whose_adapter_was_not_begun_ahead_is_built_all_the_same(
    tmp_path: Path, encoder: Encoder, items: Sequence[tuple[str, str]]
) -> None:
    publications = Publications(tmp_path, lora_ahead_batches=3)
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    catalogue = catalogue_of(encoder, items)
    first = publications.read(publications.full(1))
    model = build_model([first], previous=None, catalogue=catalogue, encoder=encoder)
    ahead = start_next_adapter_vectors(model, None, encoder)
    for _ in range(2):
        publications.learn(64)
    delta = publications.read(publications.delta(2))
    built = build_model([delta], previous=model, catalogue=catalogue, encoder=encoder, next_adapter_vectors=ahead)
    without = build_model([first, delta], previous=None, catalogue=catalogue, encoder=encoder)
    assert built.suffix is not model.suffix
    assert built.item_ids == without.item_ids
    np.testing.assert_allclose(built.text_vectors, without.text_vectors, rtol=1e-5, atol=1e-6)
    assert len(built) == 30


def test_no_vectors_are_made_ahead_of_nothing(publications: Publications, encoder: Encoder) -> None:
    publications.learner.add_items(ITEMS)
    publications.learn(64)
    bundle = publications.read(publications.full(1))
    model = build_model([bundle], previous=None, catalogue=catalogue_of(encoder, ITEMS), encoder=encoder)
    assert start_next_adapter_vectors(model, None, encoder) is None


def test_what_two_versions_have_in_common_is_held_once(publications: Publications, encoder: Encoder) -> None:
    publications.learner.add_items(ITEMS)
    catalogue = catalogue_of(encoder, ITEMS)
    first = build_model([publications.read(publications.full(1))], previous=None, catalogue=catalogue, encoder=encoder)
    again = refresh_model(first, catalogue=catalogue, encoder=encoder)
    assert np.shares_memory(again.text_vectors, first.text_vectors)
    assert again.item_ids is first.item_ids
    assert scores(again, catalogue) == scores(first, catalogue)
    catalogue.upsert([("item-3", "another text")])
    other = refresh_model(again, catalogue=catalogue, encoder=encoder)
    assert not np.shares_memory(other.text_vectors, first.text_vectors)
    assert scores(other, catalogue) != scores(first, catalogue)
