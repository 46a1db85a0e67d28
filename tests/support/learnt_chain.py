"""Bundles of a learner that really learns, on a tiny encoder: what an updater would publish."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_model import random_stream, tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.registry.bundle import Bundle, Manifest, read_bundle, write_bundle
from peft_adapters.settings import LearnerSettings

LEARNING = {
    "lora_every_events": 1,
    "lora_refresh_steps": 1,
    "lora_ahead_batches": 1,
    "lora_learning_rate": 0.02,
    "lora_trial": False,
    "residual_learning_rate": 0.1,
}


def catalogue_of(encoder: Encoder, items: Sequence[CatalogueItem]) -> Catalogue:
    """A catalogue with items in this order."""
    catalogue = Catalogue(PrefixCache(encoder, None))
    catalogue.upsert(items)
    return catalogue


class Publications:
    """Writes one bundle after the other of one learner."""

    def __init__(self, directory: Path, encoder: Encoder | None = None, **settings: Any) -> None:
        encoder = encoder or tiny_encoder()
        self.learner = Learner(encoder, Catalogue(PrefixCache(encoder, None)), LearnerSettings(**(LEARNING | settings)))
        self._directory = directory
        self._newest: Manifest | None = None
        self._published_items = 0
        self._learnt = 0

    def learn(self, events: int) -> None:
        """One step on events of any of the items."""
        self._learnt += 1
        stream = random_stream(events, items=len(self.learner.catalogue), seed=self._learnt, users=8)
        self.learner.learn(self.learner.observe(stream))

    def full(self, version: int, *, mark: bool = True) -> Path:
        """A bundle that stands alone; unless marked, the next delta does not build on it."""
        return self._write(version, full=True, mark=mark)

    def delta(self, version: int) -> Path:
        """What changed since the last bundle."""
        return self._write(version, full=False, mark=True)

    def read(self, directory: Path) -> Bundle:
        """A bundle as a worker gets it."""
        return read_bundle(directory, base_digest=self.learner.encoder.base_digest)

    def _write(self, version: int, *, full: bool, mark: bool) -> Path:
        newest, ids = self._newest, self.learner.catalogue.ids
        assert full or newest is not None
        directory = self._directory / f"{version}-{'full' if full else 'delta'}"
        manifest = write_bundle(
            directory,
            groups=self.learner.bundle_groups(full=full),
            adapter_config=self.learner.encoder.adapter_config(),
            item_ids=ids[0 if full else self._published_items :],
            scenario="home",
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
        return directory
