"""Scenario `worker-memory`: resident memory of a scorer's model over a large catalogue, at rest and while it builds.

Encoder, catalogue, bundles, building and answering are the real ones. The activations of texts are generated, because
memory does not depend on them and encoding would take an hour. It is the worst case: every item has residuals in both
roles, and three times as many pairs as items were counted. Another process writes the bundles.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measurement
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.residual_rows import quantise_rows
from peft_adapters.registry.bundle import read_bundle, write_bundle
from peft_adapters.registry.tensor_rules import MATRICES
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import FEATURES, EncoderSettings
from services.settings.scorer import ScorerSettings

TOKENS = 16  # tokens of a short title with brand and category
TOUCHED = 2_000  # items changed between two versions
PAIRS_PER_ITEM = 3
MIB = 2**20


class ConstantActivations(PrefixCache):
    """A cache that returns the same activations for every text, without an encoder."""

    _activations = torch.zeros(TOKENS, 384, dtype=torch.float16)

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the same activations for every text; a catalogue copies each."""
        return [self._activations] * len(texts)


class PeakMemory(threading.Thread):
    """A thread that records the highest resident memory since it was last read."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._highest = 0.0
        self.start()

    def run(self) -> None:
        """Sample every 10 ms."""
        while True:
            self._highest = max(self._highest, resident_mib())
            time.sleep(0.01)

    def read_mib(self) -> float:
        """Return the peak in MiB and reset it."""
        highest, self._highest = self._highest, 0.0
        return max(highest, resident_mib())


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096 / MIB


def make_bundles(directory: Path, items: int) -> None:
    """Write a full bundle, a delta on it, and a delta with another adapter."""
    torch.set_num_threads(1)
    encoder = Encoder(EncoderSettings())
    lora = encoder.lora_state()
    for version in (1, 2, 3):
        rng = np.random.default_rng(version)
        rows = np.arange(items) if version == 1 else np.sort(rng.choice(items, min(items, TOUCHED), replace=False))
        counters = Counters()
        counters.grow(items)
        pairs = items * PAIRS_PER_ITEM if version == 1 else TOUCHED
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


def run(_data: Path, *, items: int = 200_000) -> Measurement:
    """Build versions over a generated catalogue, in a process of their own.

    Args:
        items: the number of items.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(measure, items).result()
    return Measurement(
        unit="items per MiB of the peak memory, while another adapter's version is built",
        value=items / figures["other_adapter_peak_mib"],
        target=None,
        settings={"items": items, "pairs_per_item": PAIRS_PER_ITEM, "touched": TOUCHED, "tokens": TOKENS},
        rounds=[figures],
    )


def measure(items: int) -> dict[str, float]:
    """Return resident memory in MiB after each step, and the peak of each build."""
    torch.set_num_threads(1)
    peak = PeakMemory()
    encoder = Encoder(EncoderSettings())
    vars(encoder)["merged"] = lambda: lambda hidden: torch.stack([states[1].float() + 1 for states in hidden])
    figures = {"encoder_mib": resident_mib()}
    catalogue = Catalogue(ConstantActivations(encoder, None), max_hidden_bytes=ScorerSettings().max_hidden_bytes)
    catalogue.upsert(
        (f"B0{number:08d}", f"large blue mug of glass and oak, number {number}") for number in range(items)
    )
    figures["catalogue_mib"] = resident_mib()
    served: ServedModel | None = None
    with tempfile.TemporaryDirectory() as directory:
        writer = multiprocessing.get_context("spawn").Process(target=make_bundles, args=(Path(directory), items))
        writer.start()
        writer.join()
        for version, name in ((1, "first"), (2, "delta"), (3, "other_adapter")):
            peak.read_mib()
            bundle = read_bundle(Path(directory) / str(version), base_digest=encoder.base_digest)
            served = build_model([bundle], previous=served, catalogue=catalogue, encoder=encoder)
            del bundle
            figures[f"{name}_peak_mib"] = peak.read_mib()
            gc.collect()
            figures[f"{name}_at_rest_mib"] = resident_mib()
    return figures
