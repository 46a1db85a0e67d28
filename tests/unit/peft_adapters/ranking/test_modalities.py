"""Vectors of other modalities: projection, training, checkpoints, bundles, and items that gain or lose them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learnt_chain import Publications, catalogue_of
from structlog.testing import capture_logs
from tiny_model import paired_stream, random_stream, shown_stream, state_bytes, tiny_encoder, tiny_learner, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import learner_state, load_checkpoint, save_checkpoint
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.lifecycle.warm_start import start_from, write_warm_start
from peft_adapters.ranking.modalities import (
    MAX_MODALITIES,
    CatalogueItem,
    Projections,
    add_modalities,
    contribution_norm,
    item_vectors,
)
from peft_adapters.ranking.shoppers import pad
from peft_adapters.serving.model_builder import build_model, refresh_model
from peft_adapters.settings import GateSettings, LearnerSettings

ITEMS, LENGTH = 20, 12
# Few candidates, so that negatives are sampled; LoRA takes steps too, and item vectors follow both at intervals.
SETTINGS = LearnerSettings(
    negatives=12, lora_every_events=4, lora_refresh_steps=8, lora_items=16, projection_refresh_batches=3
)
STREAM = paired_stream(240, items=ITEMS, seed=4, users=9)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


def pictured(items: int = ITEMS, *, every: int = 1, seed: int = 0, name: str = "image") -> list[CatalogueItem]:
    """Return titled items, of which every `every`-th has a vector."""
    vectors = np.random.default_rng(seed).standard_normal((items, LENGTH))
    return [
        (item_id, text, item_vectors({name: vectors[row].tolist()})) if row % every == 0 else (item_id, text)
        for row, (item_id, text) in enumerate(titled(items))
    ]


def learn(learner: Learner, start: int = 0, end: int = len(STREAM), batch: int = 24) -> None:
    for begin in range(start, end, batch):
        learner.learn(learner.observe(STREAM[begin : begin + batch]))


def moved(learner: Learner, before: torch.Tensor) -> list[int]:
    """Return the rows whose text vector differs from before."""
    return torch.nonzero((learner.ranker.text != before).any(dim=1))[:, 0].tolist()


# ---- projected vectors


def test_each_adds_its_projection_and_items_without_stay_bit_for_bit() -> None:
    text = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors = {7: item_vectors({"image": [3.0, 4.0], "sound": [2.0]}), 9: item_vectors({"image": [1.0, 0.0]})}
    image, sound = torch.arange(8.0).reshape(4, 2), torch.ones(4, 1)
    found = add_modalities(text, [7, 8, 9], vectors, {"image": image, "sound": sound})
    first = text[0] + image @ torch.tensor([0.6, 0.8]) + 1.0
    torch.testing.assert_close(found[0], first / first.norm(), atol=1e-3, rtol=1e-3)
    assert torch.equal(found[1], text[1])
    torch.testing.assert_close(found[2], torch.nn.functional.normalize(text[2] + image[:, 0], dim=0))


def test_a_vector_of_another_length_is_left_out() -> None:
    text = torch.eye(2)
    vectors = {0: item_vectors({"image": [1.0, 2.0, 3.0]}), 1: item_vectors({"image": [1.0]})}
    found = add_modalities(text, [0, 1], vectors, {"image": torch.ones(2, 1)})
    torch.testing.assert_close(found[0], text[0])
    assert not torch.allclose(found[1], text[1])


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-320, 0.0], [-1e308, 1e308], [5.0]])
def test_any_finite_vector_becomes_a_unit_one_or_nothing(values: list[float]) -> None:
    unit = item_vectors({"image": values})["image"].astype(np.float64)
    assert np.isfinite(unit).all()
    assert np.linalg.norm(unit) == pytest.approx(float(any(abs(value) > 1e-300 for value in values)), abs=2e-3)


def test_more_vectors_than_are_projected_at_a_time_are_all_projected() -> None:
    vectors = {row: item_vectors({"image": [1.0]}) for row in range(0, 3_000, 2)}
    found = add_modalities(
        torch.eye(2)[:1].expand(3_000, 2), range(3_000), vectors, {"image": torch.tensor([[0.0], [1.0]])}
    )
    torch.testing.assert_close(found[::2, 1], torch.full((1_500,), 0.5**0.5))
    assert not found[1::2, 1].any()


# ---- lengths and names


def test_the_first_length_of_a_name_is_that_of_all_and_the_problem_names_both() -> None:
    projections = Projections(4, learning_rate=0.1, weight_decay=0.0)
    assert projections.register({"image": 3, "sound": 2}) is None
    assert projections.register({"image": 3}) is None
    assert projections.register({"sound": 2, "image": 5, "new": 1}) == (
        "`vectors.image` must have 3 numbers, as the first one had, got 5; keep to one length"
    )
    assert sorted(projections.served) == ["image", "sound"]  # nothing of a refused item is registered


def test_names_are_bounded() -> None:
    projections = Projections(4, learning_rate=0.1, weight_decay=0.0)
    assert projections.register({f"m{number}": 1 for number in range(MAX_MODALITIES)}) is None
    problem = projections.register({"more": 1})
    assert problem is not None
    assert f"at most {MAX_MODALITIES} names" in problem
    assert "more" in problem


def test_a_learner_that_is_given_a_wrong_length_takes_the_item_without_it(encoder: Encoder) -> None:
    learner = tiny_learner(SETTINGS, encoder=encoder)
    with capture_logs() as logs:
        learner.add_items(
            [("a", "mug", item_vectors({"image": [1.0, 2.0]})), ("b", "cup", item_vectors({"image": [1.0]}))]
        )
    assert list(learner.catalogue.modality_vectors) == [0]
    assert learner.catalogue.ids == ["a", "b"]
    (line,) = (line for line in logs if line["event"] == "vectors_not_used")
    assert line["item_id"] == "b"
    assert "`vectors.image` must have 2 numbers" in line["problem"]


# ---- training


def test_nothing_changes_before_something_is_learnt_and_then_only_items_that_have_vectors(encoder: Encoder) -> None:
    settings = SETTINGS.model_copy(update={"lora": False})
    plain, learner = tiny_learner(settings, items=ITEMS, encoder=encoder), tiny_learner(settings, encoder=encoder)
    learner.add_items(pictured(every=2))
    torch.testing.assert_close(learner.ranker.text, plain.ranker.text)
    before = learner.ranker.text.clone()
    learn(learner)
    assert set(moved(learner, before)) == set(range(0, ITEMS, 2))
    torch.testing.assert_close(learner.ranker.text.norm(dim=1), torch.ones(ITEMS))


def test_item_vectors_follow_projections_only_now_and_then(encoder: Encoder) -> None:
    learner = tiny_learner(SETTINGS.model_copy(update={"lora": False}), encoder=encoder)
    learner.add_items(pictured())
    before = learner.ranker.text.clone()
    learn(learner, 0, 48)
    assert moved(learner, before) == []
    learn(learner, 48, 72)
    assert len(moved(learner, before)) == ITEMS


def test_lists_teach_projections_too(encoder: Encoder) -> None:
    learner = tiny_learner(SETTINGS.model_copy(update={"lora": False}), encoder=encoder)
    learner.add_items(pictured())
    for shown, clicks in shown_stream(40, items=ITEMS, seed=1):
        if clicks:
            learner.learn(learner.observe(clicks))
        before = learner.projections.state_dict()["trained/image"].clone()
        learner.learn_lists(learner.observe_lists([shown]))
    assert not torch.equal(before, learner.projections.state_dict()["trained/image"])


def test_a_learner_without_vectors_is_bit_for_bit_what_it_was(encoder: Encoder) -> None:
    rates = [
        tiny_learner(SETTINGS.model_copy(update={"projection_learning_rate": rate}), items=ITEMS) for rate in (0, 1)
    ]
    for learner in rates:
        learn(learner)
    assert state_bytes(rates[0]) == state_bytes(rates[1])


# ---- items that change


def test_a_vector_that_changes_goes_or_comes_changes_its_item_alone(encoder: Encoder) -> None:
    learner = tiny_learner(SETTINGS, encoder=encoder)
    items = pictured(every=2)
    learner.add_items(items)
    learn(learner)
    before = learner.ranker.text.clone()
    learner.add_items(items)
    assert moved(learner, before) == []
    item_id, text, vectors = pictured(seed=9)[4]  # type: ignore[misc]
    for change, rows in (
        ([(item_id, text, vectors)], [4]),  # a different vector
        ([(item_id, text)], [4]),  # without its vector
        ([pictured()[5]], [4, 5]),  # with a first vector
    ):
        learner.add_items(change)
        assert set(moved(learner, before)) <= set(rows)
    assert moved(learner, before) == [4, 5]
    assert 4 not in learner.catalogue.modality_vectors
    plain = learner.catalogue.vectors(learner.lora_steps.served_suffix, [4])
    torch.testing.assert_close(learner.ranker.text[[4]], plain)
    learn(learner, 0, 96)


# ---- checkpoints and bundles


def assert_same(one: Learner, other: Learner) -> None:
    tensors, state = learner_state(one)
    other_tensors, other_state = learner_state(other)
    assert tensors.keys() == other_tensors.keys()
    assert [name for name, value in tensors.items() if not torch.equal(value, other_tensors[name])] == []
    assert json.dumps(state) == json.dumps(other_state)


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, batches: int) -> None:
    unkilled = tiny_learner(SETTINGS)
    unkilled.add_items(pictured(every=2))
    learn(unkilled, 0, 24 * batches)
    save_checkpoint(tmp_path, 1, unkilled, {})
    other = tiny_learner(SETTINGS)
    load_checkpoint(tmp_path, 1, other)
    assert_same(unkilled, other)
    for part in (unkilled, other):
        learn(part, 24 * batches, 144)
        part.add_items([*pictured(seed=3)[3:6], ("new", "oak bird", item_vectors({"sound": [1.0, 2.0]}))])
        learn(part, 144)
    assert_same(unkilled, other)
    assert unkilled.projections.served["image"].any()


def test_a_worker_scores_as_the_learner_does_with_vectors(tmp_path: Path, encoder: Encoder) -> None:
    publications = Publications(tmp_path, projection_refresh_batches=1)
    learner, items = publications.learner, pictured(30, every=2)
    learner.add_items(items)
    publications.learn(64)
    bundles = [publications.read(publications.full(1))]
    for _ in range(3):
        publications.learn(64)
    bundles.append(publications.read(publications.delta(2)))
    catalogue = catalogue_of(encoder, [*reversed(items)])
    model = build_model(bundles[:1], previous=None, catalogue=catalogue, encoder=encoder)
    model = build_model(bundles[1:], previous=model, catalogue=catalogue, encoder=encoder)
    batch = learner.observe(random_stream(16, items=30, seed=99, users=8))
    own = [
        ([model.rows[learner.catalogue.ids[row]] for row in items if row >= 0], ages[items >= 0].tolist())
        for items, ages in zip(batch.contexts.items, batch.contexts.ages, strict=True)
    ]
    assert any(rows for rows, _ in own)
    torch.testing.assert_close(model.ranker.score(pad(own)), learner.judge(batch), atol=5e-3, rtol=5e-3)
    without = build_model(bundles, previous=None, catalogue=catalogue_of(encoder, titled(30)), encoder=encoder)
    assert not torch.allclose(without.ranker.score(pad(own)), learner.judge(batch), atol=5e-2)


def test_a_worker_counts_vectors_of_another_length_and_serves_their_items_by_text(
    tmp_path: Path, encoder: Encoder
) -> None:
    publications = Publications(tmp_path, projection_refresh_batches=1)
    publications.learner.add_items(pictured(30))
    publications.learn(64)
    bundle = publications.read(publications.full(1))
    catalogue = catalogue_of(encoder, pictured(30))
    whole = build_model([bundle], previous=None, catalogue=catalogue, encoder=encoder)
    catalogue.upsert([("item-3", titled(30)[3][1], item_vectors({"image": [1.0], "unheard-of": [1.0]}))])
    model = refresh_model(whole, catalogue=catalogue, encoder=encoder)
    catalogue.upsert([titled(30)[3]])
    by_text = refresh_model(model, catalogue=catalogue, encoder=encoder)
    context = pad([([5, 7], [0, 0])])
    assert (whole.unused_vectors, model.unused_vectors, by_text.unused_vectors) == (0, 1, 0)
    assert torch.equal(model.ranker.score(context), by_text.ranker.score(context))
    assert not torch.equal(model.ranker.score(context), whole.ranker.score(context))


def test_a_bundle_has_projections_only_where_there_are_modalities(encoder: Encoder) -> None:
    learner = tiny_learner(SETTINGS, items=ITEMS, encoder=encoder)
    assert "projections" not in learner.bundle_groups(full=True)
    learner.add_items(pictured())
    assert learner.bundle_groups(full=False)["projections"]["image"].shape == (encoder.dim, LENGTH)


@pytest.mark.parametrize("with_learner", [True, False])
def test_a_warm_start_begins_with_the_projections(tmp_path: Path, with_learner: bool) -> None:
    learner = tiny_learner(SETTINGS)
    learner.add_items(pictured(every=2))
    learn(learner)
    write_warm_start(tmp_path, learner, scenario="home", watermark_ms=1, metrics={}, extra={})
    if not with_learner:
        (tmp_path / "learner").rename(tmp_path / "elsewhere")
    other = tiny_learner(SETTINGS)
    start_from(other, tmp_path)
    other.add_items(pictured(every=2))
    torch.testing.assert_close(other.ranker.text, learner.ranker.text, atol=5e-3, rtol=5e-3)
    learn(other)


# ---- the gate


@pytest.mark.parametrize(("value", "rules"), [(float("nan"), ["not_finite"]), (1e3, ["bound", "norm"])])
def test_the_gate_looks_at_projections_and_takes_them_back(value: float, rules: list[str]) -> None:
    learner = tiny_learner(SETTINGS)
    learner.add_items(pictured(every=2))
    learn(learner)
    rules_of_gate = GateSettings(refusals_before_rollback=1)
    gate = Gate(learner, PrequentialEvaluator(), rules_of_gate)
    good = learner.projections.served["image"].clone()
    learner.projections.served["image"].fill_(value)
    verdict = gate.judge(learner.bundle_groups(full=True))
    assert (verdict["decision"], verdict["rules"]) == ("refused", rules)
    assert "projections" in verdict["reasons"][0]
    learner.add_items([("new", "oak bird", item_vectors({"sound": [1.0]}))])  # newer than the version that is restored
    assert gate.apply("refused") is not None
    assert torch.equal(learner.projections.served["image"], good)
    assert not learner.projections.served["sound"].any()
    assert gate.judge(learner.bundle_groups(full=True))["decision"] == "passed"
    learn(learner, 0, 48)


def test_the_norm_of_a_projection_is_what_it_adds_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(16, 64, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(4_000, 64, generator=generator), dim=1)
    mean_square = (vectors @ projection.T).square().sum(dim=1).mean()
    assert float(contribution_norm(projection)) == pytest.approx(float(mean_square.sqrt()), rel=0.02)
