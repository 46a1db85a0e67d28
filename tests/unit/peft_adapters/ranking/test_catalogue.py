"""Items keep their rows, texts may change, and only changed texts are encoded."""

import numpy as np
import pytest
import torch
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import MAX_TEXT_CHARS, Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.catalogue import Catalogue, item_text


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def catalogue(encoder: Encoder) -> Catalogue:
    catalogue = Catalogue(PrefixCache(encoder, None))
    catalogue.upsert([("a", "red mug"), ("b", "lamp"), ("c", "oak plate")])
    return catalogue


def test_rows_in_order_of_arrival(catalogue: Catalogue) -> None:
    assert catalogue.ids == ["a", "b", "c"]
    assert [catalogue.rows[item] for item in "abc"] == [0, 1, 2]
    assert len(catalogue) == 3
    assert "b" in catalogue
    assert "d" not in catalogue


def test_only_new_texts_are_reported_and_encoded(encoder: Encoder) -> None:
    cache = PrefixCache(encoder, None)
    catalogue = Catalogue(cache)
    assert catalogue.upsert([("a", "red mug"), ("b", "lamp")]) == [0, 1]
    assert catalogue.upsert([("b", "lamp"), ("c", "vase"), ("a", "blue mug")]) == [0, 2]
    assert cache.misses == 4
    assert catalogue.texts == ["blue mug", "lamp", "vase"]
    for text, hidden in zip(catalogue.texts, catalogue.hidden, strict=True):
        assert hidden is not None
        assert torch.equal(hidden, encoder.prefix([text])[0])


def test_the_last_of_several_texts_in_one_call_stands(catalogue: Catalogue, encoder: Encoder) -> None:
    assert catalogue.upsert([("a", "vase"), ("d", "rug"), ("a", "bird"), ("d", "glass"), ("a", "red mug")]) == [0, 3]
    assert catalogue.texts == ["red mug", "lamp", "oak plate", "glass"]
    assert torch.equal(catalogue._activations([0])[0], encoder.prefix(["red mug"])[0])
    assert torch.equal(catalogue._activations([3])[0], encoder.prefix(["glass"])[0])


def test_vectors_are_unit_and_in_the_order_asked_for(catalogue: Catalogue, encoder: Encoder) -> None:
    vectors = catalogue.vectors(encoder.suffix, [2, 0])
    expected = torch.nn.functional.normalize(encoder.suffix(encoder.prefix(["oak plate", "red mug"])), dim=1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert catalogue.vectors(encoder.suffix, []).shape == (0, encoder.dim)


def test_large_refresh_is_done_in_parts_and_comes_back_whole(encoder: Encoder) -> None:
    catalogue = Catalogue(PrefixCache(encoder, None))
    catalogue.upsert([(str(number), f"mug {number}") for number in range(1_100)])
    sizes: list[int] = []

    def suffix(hidden: object) -> torch.Tensor:
        assert isinstance(hidden, list)
        sizes.append(len(hidden))
        return encoder.suffix(hidden).detach()

    vectors = catalogue.vectors(suffix, range(1_100))
    assert sizes == [1_024, 76]
    torch.testing.assert_close(vectors[1_050:], catalogue.vectors(suffix, range(1_050, 1_100)), atol=1e-5, rtol=1e-5)


def test_item_text_leaves_out_what_is_empty() -> None:
    assert item_text(title="Mug", category="Kitchen") == "Mug. Kitchen"


def test_activations_beyond_what_memory_may_hold_come_from_the_cache_and_are_the_same(encoder: Encoder) -> None:
    items = [("a", "red mug"), ("b", "lamp"), ("c", "blue oak plate"), ("d", "vase")]
    everything = Catalogue(PrefixCache(encoder, None))
    everything.upsert(items)
    room = sum(states.nbytes for states in everything.hidden[:2] if states is not None)
    cache = PrefixCache(encoder, None)
    bounded = Catalogue(cache, max_hidden_bytes=room)
    for item in items:
        bounded.upsert([item])
    assert [states is not None for states in bounded.hidden] == [True, True, False, False]
    suffix, rows = encoder.merged(), [3, 0, 2, 1, 0]
    assert torch.equal(bounded.vectors(suffix, rows), everything.vectors(suffix, rows))
    assert cache.misses == 4, "computed once each"
    bounded.upsert([("a", "rug")])  # frees its memory for the next item
    bounded.upsert([("e", "bird")])
    assert [states is not None for states in bounded.hidden] == [False, True, False, False, True]


@pytest.mark.parametrize("field", ["title", "brand", "category", "description"])
def test_the_text_of_an_item_is_cut_whichever_field_is_long(field: str) -> None:
    said = {"title": "Mug"} | {field: "x" * 2**20}
    assert len(item_text(**said)) == MAX_TEXT_CHARS
    just_under = {"title": "Mug"} | {field: "x" * (MAX_TEXT_CHARS - 10)}
    assert just_under[field] in item_text(**just_under)


def test_prices_are_kept_and_change_without_encoding_a_text_again(encoder: Encoder) -> None:
    cache = PrefixCache(encoder, None)
    catalogue = Catalogue(cache)
    catalogue.upsert([("a", "red mug", {}, 2.5), ("b", "lamp"), ("c", "oak plate", {}, None)])
    assert catalogue.prices == {0: 2.5}
    assert catalogue.upsert([("a", "red mug"), ("b", "lamp", {}, 3.0)]) == []
    assert (catalogue.prices, cache.misses) == ({1: 3.0}, 3)
    np.testing.assert_allclose(catalogue.facts().log_prices, [np.nan, np.log(3), np.nan], rtol=1e-6)
