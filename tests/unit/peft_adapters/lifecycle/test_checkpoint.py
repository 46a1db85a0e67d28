"""A checkpoint is the whole learner, bit for bit, and is there whole or not at all."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import Bought, paired_stream, tiny_bert, tiny_encoder, tiny_learner, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import CheckpointError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import learner_state, load_checkpoint, prune_checkpoints, save_checkpoint
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.settings import EncoderSettings, LearnerSettings

ITEMS = 20
# Few candidates, so that negatives are drawn; a step of LoRA a batch, of which item vectors follow a few.
SETTINGS = LearnerSettings(
    negatives=12,
    lora_every_events=4,
    lora_refresh_steps=8,
    lora_ahead_batches=3,
    lora_items=16,
    lora_learning_rate=0.01,
)
MADE_AHEAD = {1: None, 3: 14, 4: None, 5: 7}  # texts under the LoRA that comes next after so many batches, if one does
STREAM = paired_stream(240, items=ITEMS, seed=4, users=9)


def learn(learner: Learner, events: Sequence[Bought], *, batch: int = 24) -> None:
    for start in range(0, len(events), batch):
        learner.learn(learner.observe(events[start : start + batch]))


def assert_same(one: Learner, other: Learner) -> None:
    tensors, state = learner_state(one)
    other_tensors, other_state = learner_state(other)
    assert tensors.keys() == other_tensors.keys()
    assert [name for name, value in tensors.items() if not torch.equal(value, other_tensors[name])] == []
    assert json.dumps(state) == json.dumps(other_state)


def resumed(root: Path, settings: LearnerSettings = SETTINGS, encoder: Encoder | None = None) -> Learner:
    learner = tiny_learner(settings, encoder=encoder)
    load_checkpoint(root, 1, learner)
    return learner


@pytest.fixture(scope="module")
def learner() -> Learner:
    """To be saved, not to be changed."""
    learner = tiny_learner(SETTINGS, items=ITEMS)
    learn(learner, STREAM[:96])
    return learner


@cache
def spare_encoder() -> Encoder:
    """For learners that only look into a checkpoint."""
    return tiny_encoder()


def look_into(root: Path, number: int = 1) -> dict[str, Any]:
    return load_checkpoint(root, number, tiny_learner(SETTINGS, encoder=spare_encoder()))


@pytest.mark.parametrize(("batches", "made"), MADE_AHEAD.items())
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, batches: int, made: int | None) -> None:
    unkilled = tiny_learner(SETTINGS, items=ITEMS)
    learn(unkilled, STREAM[: 24 * batches])
    ahead = unkilled.lora_steps.next_adapter
    assert (None if ahead is None else len(ahead.texts)) == made
    save_checkpoint(tmp_path, 1, unkilled, {})
    other = resumed(tmp_path)
    assert_same(unkilled, other)
    for part in (unkilled, other):
        learn(part, STREAM[24 * batches :])
    assert_same(unkilled, other)
    assert unkilled.events_learned == len(STREAM)


@pytest.mark.parametrize("batches", [1, 3, 5])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_resumed_equals_uninterrupted_with_all_that_lora_may_keep(tmp_path: Path, batches: int, kind: str) -> None:
    changes = {"lora_optimiser": kind, "lora_dropout": 0.2, "lora_warmup_steps": 4, "lora_accumulate": 2}
    changes |= {"lora_replay_batches": 2}
    settings = SETTINGS.model_copy(update=changes)
    unkilled = tiny_learner(settings, items=ITEMS)
    learn(unkilled, STREAM[: 24 * batches])
    assert any(name.startswith("lora/optimiser/gradient.") for name in learner_state(unkilled)[0])
    save_checkpoint(tmp_path, 1, unkilled, {})
    other = resumed(tmp_path, settings)
    for part in (unkilled, other):
        learn(part, STREAM[24 * batches :])
    assert_same(unkilled, other)


def test_resumed_equals_uninterrupted_when_items_come_and_texts_change(tmp_path: Path) -> None:
    learner = tiny_learner(SETTINGS, items=ITEMS)
    first: list[CatalogueItem] = [("new-0", "oak bird", {}, 3.5), ("item-5", "lamp", {}, 2.0)]
    second: list[CatalogueItem] = [("item-3", "another lamp"), ("new-1", ""), ("new-0", "oak bird", {}, 4.0)]
    for new in (first, second):
        learner.add_items(new)
        learn(learner, STREAM[:24])
    save_checkpoint(tmp_path, 1, learner, {})
    other = resumed(tmp_path)
    for part in (learner, other):
        learn(part, STREAM[24:96])
        part.add_items([("new-2", "green vase")])
        learn(part, [Bought("user-1", None, "new-2", 10**9), *STREAM[96:140]])
    assert_same(learner, other)


def test_resuming_twice_equals_uninterrupted(tmp_path: Path) -> None:
    unkilled = tiny_learner(SETTINGS, items=ITEMS)
    learn(unkilled, STREAM)
    killed = tiny_learner(SETTINGS, items=ITEMS)
    for start in range(0, len(STREAM), 96):
        learn(killed, STREAM[start : start + 96])
        save_checkpoint(tmp_path, 1, killed, {})
        killed = resumed(tmp_path)
    assert_same(unkilled, killed)


def test_what_is_kept_beside_comes_back(tmp_path: Path, learner: Learner) -> None:
    extra = {"offsets": {"clicks/0": 12}, "prequential": {"judged": [[0.5, 0.25, 3, True, False]]}}
    save_checkpoint(tmp_path / "deep" / "home", 7, learner, extra)
    assert look_into(tmp_path / "deep" / "home", 7) == extra


def test_the_newest_are_kept_and_sha256sum_agrees(tmp_path: Path, learner: Learner) -> None:
    for number in range(1, 5):
        save_checkpoint(tmp_path, number, learner, {})
    prune_checkpoints(tmp_path, keep={3, 4})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["0000000003", "0000000004"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / kept[1], check=True)


class KilledError(BaseException):
    """The process is gone: nothing after it happens, not even tidying up."""


class Guillotine:
    """Kills at the n-th thing that is done to the disk; the dead do nothing more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, survives: int) -> None:
        self.left, self.done = survives, []  # type: tuple[int, list[str]]
        for owner, name in (
            *((Path, name) for name in ("mkdir", "open", "replace", "rename", "unlink")),
            *((os, name) for name in ("fsync", "replace", "rename")),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise KilledError(name)
            self.left -= 1
            self.done.append(name)
            return do(*args, **kwargs)

        return watched


def test_a_kill_at_any_step_leaves_the_checkpoint_before_and_the_new_one_whole_or_not(
    tmp_path: Path, learner: Learner
) -> None:
    save_checkpoint(tmp_path / "before", 1, learner, {"number": 1})
    found, last = [], 0
    for survives in count():
        root = shutil.copytree(tmp_path / "before", tmp_path / str(survives))
        with pytest.MonkeyPatch.context() as monkeypatch:
            guillotine = Guillotine(monkeypatch, survives=survives)
            try:
                save_checkpoint(root, 2, learner, {"number": 2})
            except KilledError:
                last = survives
        assert look_into(root, 1) == {"number": 1}
        found.append((root / "0000000002").exists())
        if found[-1]:
            assert look_into(root, 2) == {"number": 2}
        save_checkpoint(root, 2, learner, {"number": 3})  # a run cut short is made again under its number
        assert look_into(root, 2) == {"number": 3}
        if survives > last:
            break
    assert found == sorted(found)
    assert set(found) == {False, True}
    assert guillotine.done.count("fsync") == 6  # three files, their directory, the root


@pytest.mark.parametrize("step", ["mkdir", "fsync", "replace", "rename"])
def test_a_full_disk_is_told_and_the_checkpoint_before_stands(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, 1, learner, {"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, no_space)
        with pytest.raises(CheckpointError, match=r"00000002 cannot be written: .*No space left.*; the one before"):
            save_checkpoint(tmp_path, 2, learner, {"number": 2})
    assert look_into(tmp_path, 1) == {"number": 1}
    save_checkpoint(tmp_path, 2, learner, {"number": 2})
    assert look_into(tmp_path, 2) == {"number": 2}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the model": lambda path: flip(path / "model.safetensors"),
    "a bit of the state": lambda path: flip(path / "state.json"),
    "a bit of the sums": lambda path: flip(path / "SHA256SUMS"),
    "half a model": lambda path: os.truncate(path / "model.safetensors", 500),
    "half a state": lambda path: os.truncate(path / "state.json", 500),
    "no model": lambda path: (path / "model.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "no sums": lambda path: (path / "SHA256SUMS").unlink(),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_its_place_and_the_way_out(tmp_path: Path, learner: Learner, damage: str) -> None:
    save_checkpoint(tmp_path, 1, learner, {})
    DAMAGE[damage](tmp_path / "0000000001")
    fresh = tiny_learner(SETTINGS, encoder=spare_encoder())
    with pytest.raises(CheckpointError, match=r"0000000001 cannot be read: .*; put it back from a copy"):
        load_checkpoint(tmp_path, 1, fresh)
    assert (len(fresh.catalogue), fresh.events_learned) == (0, 0)


def test_another_release_is_refused(tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("peft_adapters.lifecycle.checkpoint.STATE_VERSION", 99)
        save_checkpoint(tmp_path, 1, learner, {})
    with pytest.raises(CheckpointError, match=r"is of version 99, this release reads 7 and 8; use the release"):
        look_into(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_encoder(tiny_bert(seed=5)), "made with encoder [0-9a-f]{12}, this one is"),
        (lambda: tiny_encoder(lora_layers=2), "made with encoder [0-9a-f]{12}, this one is"),
        (lambda: shaped(lora_rank=2, lora_alpha=16), r"made with the adapter .*'r': 4.*, this one is .*'r': 2"),
        (lambda: shaped(lora_rank=4, lora_alpha=99), r"made with the adapter .*, this one is .*'lora_alpha': 99"),
    ],
    ids=["other weights", "other split", "other rank", "other alpha"],
)
def test_another_encoder_or_adapter_is_refused_and_nothing_is_restored(
    tmp_path: Path, learner: Learner, make: Callable[[], Encoder], message: str
) -> None:
    save_checkpoint(tmp_path, 1, learner, {})
    fresh = tiny_learner(SETTINGS, encoder=make())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, 1, fresh)
    assert (len(fresh.catalogue), fresh.events_learned) == (0, 0)


def shaped(**lora: int) -> Encoder:
    return Encoder(EncoderSettings(model=str(tiny_bert()), cache_dir=None, **lora))


def test_a_part_that_the_learner_has_and_the_checkpoint_has_not_is_named(tmp_path: Path) -> None:
    without = tiny_learner(SETTINGS.model_copy(update={"residuals": False}), items=ITEMS)
    save_checkpoint(tmp_path, 1, without, {})
    with pytest.raises(CheckpointError, match=r"has no 'positives/query'; use the `learner` settings"):
        look_into(tmp_path)


def test_other_learning_rates_may_go_on(tmp_path: Path, learner: Learner) -> None:
    save_checkpoint(tmp_path, 1, learner, {})
    other = resumed(tmp_path, SETTINGS.model_copy(update={"heads_learning_rate": 0.5}))
    assert_same(learner, other)
    before = other.ranker.heads.clone()
    learn(other, STREAM[96:144])
    assert not torch.equal(before, other.ranker.heads)


def test_items_keep_their_rows(tmp_path: Path, learner: Learner) -> None:
    save_checkpoint(tmp_path, 1, learner, {})
    assert resumed(tmp_path).catalogue.ids == [item_id for item_id, _ in titled(ITEMS)]
