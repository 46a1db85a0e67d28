"""What a fit leaves is what another learner begins from; anything else is refused with its reason."""

from pathlib import Path

import pytest
import torch
from tiny_model import paired_stream, state_bytes, tiny_bert, tiny_encoder, tiny_learner, titled

from peft_adapters.errors import BundleBaseMismatchError, BundleDigestError, BundleFormatError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.warm_start import (
    LEARNER_NAME,
    load_bundle_into,
    start_from,
    write_warm_start,
)
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.settings import LearnerSettings

ITEMS = 20


def taught(*, seed: int = 1) -> Learner:
    learner = tiny_learner(LearnerSettings(), items=ITEMS)
    stream = paired_stream(150, items=ITEMS, seed=seed)
    for start in range(0, len(stream), 25):
        learner.learn(learner.observe(stream[start : start + 25]))
    return learner


def write(directory: Path, learner: Learner) -> None:
    write_warm_start(directory, learner, scenario="home", watermark_ms=1, metrics={}, extra={"pseudonyms": "x"})


def test_a_learner_goes_on_bit_for_bit(tmp_path: Path) -> None:
    learner, other = taught(), tiny_learner(LearnerSettings())
    write(tmp_path, learner)
    assert start_from(other, tmp_path) == {"pseudonyms": "x"}
    for one in (learner, other):
        one.learn(one.observe(paired_stream(50, items=ITEMS, seed=2)))
    assert state_bytes(other) == state_bytes(learner)
    assert other.events_learned == learner.events_learned == 200


def test_a_bundle_alone_brings_everything_that_a_bundle_holds(tmp_path: Path) -> None:
    learner, other = taught(), tiny_learner(LearnerSettings())
    write(tmp_path, learner)
    load_bundle_into(other, read_bundle(tmp_path, base_digest=None))
    other.add_items([*titled(ITEMS)[::-1], ("new", "a new one")])  # in another order: rows go by id
    assert other.catalogue.ids == [*learner.catalogue.ids, "new"]
    assert torch.allclose(other.ranker.text[:ITEMS], learner.ranker.text, atol=1e-6)
    ours, theirs = learner.bundle_groups(full=True), other.bundle_groups(full=True)
    for group, tensors in ours.items():
        assert tensors.keys() == theirs[group].keys()
        for name, tensor in tensors.items():
            found = theirs[group][name]
            assert torch.equal(found[tuple(slice(size) for size in tensor.shape)], tensor), (group, name)
    assert other.events_learned == learner.events_learned


def test_only_a_fresh_learner_can_begin(tmp_path: Path) -> None:
    write(tmp_path, taught())
    with pytest.raises(ValueError, match="must be a fresh one, got one of 20 items"):
        start_from(taught(), tmp_path)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, taught())
    other = tiny_learner(LearnerSettings(), encoder=tiny_encoder(tiny_bert(seed=1)))
    with pytest.raises(BundleBaseMismatchError, match="expected base_digest"):
        start_from(other, tmp_path)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    learner = taught()
    learner.ranker.heads[0] = torch.nan
    write(tmp_path, learner)
    with pytest.raises(
        BundleFormatError, match=r"found one that did not: heads\.weights has 1 values that are not finite"
    ):
        start_from(tiny_learner(LearnerSettings()), tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="expected a manifest, found none"):
        start_from(tiny_learner(LearnerSettings()), tmp_path)


def test_the_learner_of_another_fit_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one", taught())
    write(tmp_path / "two", taught(seed=3))
    (tmp_path / "one" / LEARNER_NAME).rename(tmp_path / "aside")
    (tmp_path / "two" / LEARNER_NAME).rename(tmp_path / "one" / LEARNER_NAME)
    with pytest.raises(BundleDigestError, match="copy both from the same fit"):
        start_from(tiny_learner(LearnerSettings()), tmp_path / "one")


def test_beginning_again_forgets_events_and_keeps_weights() -> None:
    learner = taught()
    heads, residuals = learner.positives.heads.clone(), learner.ranker.residuals["query"].clone()
    steps = learner.batches_learned
    learner.reset_counts()
    assert learner.events_learned == len(learner.shoppers) == learner.ranker.counters.events.sum() == 0
    assert torch.equal(learner.positives.heads, heads)
    assert torch.equal(learner.ranker.residuals["query"], residuals)
    assert learner.batches_learned == steps


def test_what_was_only_counted_is_put_back() -> None:
    learner = taught()
    before, shoppers = state_bytes(learner), learner.shoppers.state_dict()
    with learner.counts_restored():
        learner.count(learner.observe(paired_stream(50, items=ITEMS, seed=2)))
        assert state_bytes(learner) != before
    assert state_bytes(learner) == before
    assert learner.shoppers.state_dict() == shoppers
    assert learner.events_learned == 150
