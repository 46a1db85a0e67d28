"""Resident memory of a scoring worker's model over a large catalogue: at rest, and at most while versions are built.

`python -m benchmarks.worker_memory --items 200000`. Encoder, catalogue, bundles, building and answering are the real
ones; what an item's text becomes is made up, because memory does not depend on it and it would take an hour. Every item
has residuals in both roles and three times as many events as there are items were counted: the worst case. The bundles
are made by another process.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import MATRICES, Counters
from peft_adapters.ranking.residual_rows import quantise_rows
from peft_adapters.registry.bundle import read_bundle, write_bundle
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import FEATURES, EncoderSettings
from services.settings.scorer import ScorerSettings

TOKENS = 16  # of a short title with brand and category
TOUCHED = 2_000  # items between two versions
PAIRS_AN_ITEM = 3
MIB = 2**20


class MadeUp(PrefixCache):
    """Activations of texts without an encoder's work."""

    _one = torch.zeros(TOKENS, 384, dtype=torch.float16)

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        """The same for every text; a catalogue makes a copy of each."""
        return [self._one] * len(texts)


class Peak(threading.Thread):
    """The highest resident memory since it was last asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._highest = 0.0
        self.start()

    def run(self) -> None:
        """Look every 10 ms."""
        while True:
            self._highest = max(self._highest, resident_mib())
            time.sleep(0.01)

    def mib(self) -> float:
        """And begin anew."""
        highest, self._highest = self._highest, 0.0
        return max(highest, resident_mib())


def resident_mib() -> float:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096 / MIB


def make_bundles(directory: Path, items: int) -> None:
    """A full bundle, a delta on it, and one with another adapter."""
    torch.set_num_threads(1)
    encoder = Encoder(EncoderSettings())
    lora = encoder.lora_state()
    for version in (1, 2, 3):
        rng = np.random.default_rng(version)
        rows = np.arange(items) if version == 1 else np.sort(rng.choice(items, min(items, TOUCHED), replace=False))
        counters = Counters()
        counters.grow(items)
        pairs = items * PAIRS_AN_ITEM if version == 1 else TOUCHED
        counted = counters.full()
        for name in MATRICES:
            places = torch.from_numpy(rng.integers(0, items, (2, pairs), dtype=np.int32))
            counted |= {f"{name}.row": places[0], f"{name}.column": places[1], f"{name}.count": torch.ones(pairs)}
        table = torch.full((items, encoder.dim), 0.05)
        write_bundle(
            directory / str(version),
            groups={
                "adapter_model": {name: value + (0.01 if version == 3 else 0) for name, value in lora.items()},
                "heads": {"weights": torch.ones(len(FEATURES)), "global_preference": torch.zeros(encoder.dim)},
                "residuals": quantise_rows("query", table, rows.tolist())
                | quantise_rows("candidate", table, rows.tolist()),
                "counters": counted,
            },
            adapter_config=encoder.adapter_config(),
            item_ids=[f"B0{number:08d}" for number in range(items)] if version == 1 else [],
            scenario="home",
            version=version,
            kind="full" if version == 1 else "delta",
            parent=None if version == 1 else version - 1,
            snapshot=1,
            base_digest=encoder.base_digest,
            offsets={},
            watermark_ms=1,
            published_at_ms=1,
            events_learned=1,
        )


def measure(items: int) -> dict[str, float]:
    """Figures in MiB."""
    torch.set_num_threads(1)
    peak = Peak()
    encoder = Encoder(EncoderSettings())
    vars(encoder)["merged"] = lambda: lambda hidden: torch.stack([states[1].float() + 1 for states in hidden])
    figures = {"items": float(items), "encoder": resident_mib()}
    catalogue = Catalogue(MadeUp(encoder, None), max_hidden_bytes=ScorerSettings().max_hidden_bytes)
    catalogue.upsert(
        (f"B0{number:08d}", f"large blue mug of glass and oak, number {number}") for number in range(items)
    )
    figures["catalogue"] = resident_mib()
    served: ServedModel | None = None
    with tempfile.TemporaryDirectory() as directory:
        maker = multiprocessing.get_context("spawn").Process(target=make_bundles, args=(Path(directory), items))
        maker.start()
        maker.join()
        for version, name in ((1, "first"), (2, "delta"), (3, "other_adapter")):
            peak.mib()
            bundle = read_bundle(Path(directory) / str(version), base_digest=encoder.base_digest)
            served = build_model([bundle], previous=served, catalogue=catalogue, encoder=encoder)
            del bundle
            figures[f"{name}_peak"] = peak.mib()
            gc.collect()
            figures[f"{name}_at_rest"] = resident_mib()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    json.dump({name: round(value) for name, value in measure(parser.parse_args().items).items()}, sys.stdout, indent=2)
