"""Explanations: each division adds up to the score, and removing a cause removes its share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from learnt_chain import Publications, catalogue_of
from tiny_model import paired_stream, shown_stream, tiny_encoder, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.item_facts import ItemFacts
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.ranking.second_stage import NETWORKS, SecondStage, shapes
from peft_adapters.ranking.shoppers import pad
from peft_adapters.serving.explanations import KINDS, Explanation, explain
from peft_adapters.serving.model_builder import build_model, build_ranker
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import FEATURES

PLAIN: list[CatalogueItem] = [*titled(30)]
CLOSE = 1e-4
CONTEXTS = {
    "nobody": ([], []),
    "session": ([4, 6, 4, 2], [0, 0, 0, 0]),
    "history": ([8, 10, 3, 8], [1, 1, 2, 5]),
    "both": ([4, 2, 8, 4, 12], [0, 0, 1, 1, 3]),
    "an item that came after the adapter": ([30, 4], [0, 1]),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture(scope="module")
def make_model(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ServedModel]:
    def make(items: list[CatalogueItem], *, lists: int = 0) -> ServedModel:
        publications = Publications(tmp_path_factory.mktemp("bundles"))
        publications.learner.add_items(items)
        for seed in range(3):
            publications.learner.learn(publications.learner.observe(paired_stream(64, items=30, seed=seed, users=8)))
        for shown, clicks in shown_stream(lists, items=30, seed=1, users=8):
            publications.learner.learn(publications.learner.observe(clicks)) if clicks else None
            publications.learner.learn_lists(publications.learner.observe_lists([shown]))
        bundle = publications.read(publications.full(1))
        newer = [*items, ("item-30", "a late vase")]
        return build_model([bundle], previous=None, catalogue=catalogue_of(encoder, newer), encoder=encoder)

    return make


@pytest.fixture(scope="module")
def model(make_model: Callable[..., ServedModel]) -> ServedModel:
    return _with_every_weight(make_model(PLAIN))


def _with_every_weight(model: ServedModel) -> ServedModel:
    """Return the model with no head weight at zero, so that every feature is tested."""
    heads = model.state.heads + torch.linspace(-2.0, 3.0, len(FEATURES))
    state, facts = replace(model.state, heads=heads), ItemFacts.unknown(len(model))
    ranker = build_ranker(state, model.content_vectors, facts)
    return replace(model, state=state, ranker=ranker, scorer=ranker.scorer)


def _with_second_stage(model: ServedModel) -> ServedModel:
    """Return the model with networks of random weights, each of which changes every score."""
    draw = torch.Generator().manual_seed(5)
    weights = {
        name: torch.randn(len(NETWORKS), *shape, generator=draw) * 3 * max(shape) ** -0.5
        if shape
        else torch.ones(len(NETWORKS))
        for name, shape in shapes().items()
    }
    networks = SecondStage.from_tensors(
        weights | {"scale": weights["scale"].abs(), "strength": torch.tensor([0.7, 0.2, 0.4])}
    )
    state, facts = replace(model.state, second_stage=networks), ItemFacts.unknown(len(model))
    ranker = build_ranker(state, model.content_vectors, facts)
    return replace(model, state=state, ranker=ranker, scorer=ranker.scorer)


def explained(
    model: ServedModel, context: tuple[list[int], list[int]], query_vector: FloatArray | None = None
) -> list[Explanation]:
    return explain(model, pad([context]), np.arange(len(model)), query_vector)


def assert_adds_up(
    model: ServedModel, context: tuple[list[int], list[int]], query_vector: FloatArray | None = None
) -> None:
    scores = model.ranker.score(
        pad([context]), query_vector=None if query_vector is None else torch.from_numpy(query_vector)
    )[0].tolist()
    for explanation, score in zip(explained(model, context, query_vector), scores, strict=True):
        assert explanation.score == pytest.approx(score, abs=CLOSE)
        assert sum(explanation.kinds.values()) == pytest.approx(score, abs=CLOSE)
        assert sum(explanation.features.values()) == pytest.approx(score, abs=CLOSE)
        history = sum(item.share for item in explanation.history)
        by_source = explanation.popularity + explanation.global_preference + explanation.query + history
        by_source += explanation.second_stage
        assert by_source == pytest.approx(score, abs=CLOSE)


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_every_cut_adds_up_to_the_score(model: ServedModel, context: tuple[list[int], list[int]]) -> None:
    assert_adds_up(model, context)


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_every_cut_adds_up_to_the_score_of_the_second_stage(
    model: ServedModel, context: tuple[list[int], list[int]]
) -> None:
    reranked = _with_second_stage(model)
    linear = [explanation.score for explanation in explained(model, context)]
    assert max(abs(a.score - b) for a, b in zip(explained(reranked, context), linear, strict=True)) > 0.1
    for query_vector in (None, model.text_vectors[[9]]):
        assert_adds_up(reranked, context, query_vector)


@pytest.mark.parametrize("context", [CONTEXTS["nobody"], CONTEXTS["both"]])
def test_what_is_searched_for_has_its_share(model: ServedModel, context: tuple[list[int], list[int]]) -> None:
    query_vector = model.text_vectors[[9]]
    assert_adds_up(model, context, query_vector)
    alone, searched = explained(model, context), explained(model, context, query_vector)
    assert {explanation.query for explanation in alone} == {0.0}
    for before, explanation in zip(alone, searched, strict=True):
        assert explanation.query == pytest.approx(explanation.score - before.score, abs=CLOSE)


def test_what_lists_taught_and_vectors_of_other_modalities_are_in_it(make_model: Callable[..., ServedModel]) -> None:
    rng = np.random.default_rng(0)
    items: list[CatalogueItem] = [
        (item[0], item[1], {"image": rng.normal(size=6).astype(np.float16)}) for item in PLAIN
    ]
    model = make_model(items, lists=6)
    assert not np.array_equal(model.content_vectors.numpy(), model.text_vectors)
    assert_adds_up(model, CONTEXTS["both"])


def test_a_stranger_is_shown_popularity_and_global_preference_alone(model: ServedModel) -> None:
    for explanation in explained(model, CONTEXTS["nobody"]):
        assert explanation.history == []
        assert explanation.kinds["cooccurrence"] == explanation.kinds["repeats"] == 0


def test_each_item_of_the_context_has_its_own_share(model: ServedModel) -> None:
    partner = explained(model, ([4, 12], [0, 0]))[5]  # item 5 follows item 4 in every session
    shares = {item.row: item.shares["cooccurrence"] for item in partner.history}
    assert set(shares) == {4, 12}
    assert abs(shares[4]) > 5 * abs(shares[12])


def test_a_repeat_is_the_share_of_the_item_itself(model: ServedModel) -> None:
    again = explained(model, ([4, 8], [0, 2]))[8]
    repeats = {item.row: item.shares["repeats"] for item in again.history}
    assert repeats[8] == pytest.approx(again.kinds["repeats"])
    assert repeats[8] != 0
    assert repeats[4] == 0
    assert next(item for item in again.history if item.row == 8).sessions_ago == 2


def test_without_residuals_all_that_vectors_say_is_the_text_s(model: ServedModel) -> None:
    residuals = {role: torch.zeros_like(table) for role, table in model.state.residuals.items()}
    bare = replace(model, state=replace(model.state, residuals=residuals))
    without = explained(bare, CONTEXTS["both"])
    assert max(abs(explanation.kinds["residual"]) for explanation in without) < CLOSE
    assert max(abs(explanation.kinds["residual"]) for explanation in explained(model, CONTEXTS["both"])) > 0.01


def test_the_largest_share_comes_first(model: ServedModel) -> None:
    for explanation in explained(model, CONTEXTS["both"]):
        shares = [abs(item.share) for item in explanation.history]
        assert shares == sorted(shares, reverse=True)
        assert all(tuple(item.shares) == KINDS for item in explanation.history)
