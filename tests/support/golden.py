"""Golden artefacts: what a release wrote, and how today's code reads it."""

import gzip
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kafka import KafkaProducer
from learnt_chain import catalogue_of
from updater_shop import UpdaterProcess, newest_checkpoint, wait_until

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.ranking.modalities import CatalogueItem, item_vectors
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.serving.model_builder import build_model
from peft_adapters.settings import EncoderSettings
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.embedded_broker import EmbeddedBroker
from streams.topic_creation import ensure_topics
from streams.topics import Topics

ROOT = Path(__file__).parents[1] / "golden"
MODEL = ROOT / "model"
TOPICS = Topics.under("golden")
PARTITIONS = 2
WORDS = ("red", "blue", "oak", "glass", "mug", "lamp", "rug", "bird", "small", "large", "iron", "plate")
CATALOGUE_ITEMS = 12
HISTORIES = {"new": [], "short": ["item-3"], "long": ["item-7", "item-1", "item-4", "item-1", "item-0"]}

# The updater that wrote the checkpoints; settings of the release that wrote them.
ENVIRONMENT = {
    "HEADWATER_TOPICS__IMPRESSIONS": TOPICS.impressions,
    "HEADWATER_TOPICS__CLICKS": TOPICS.clicks,
    "HEADWATER_TOPICS__PURCHASES": TOPICS.purchases,
    "HEADWATER_TOPICS__ITEMS": TOPICS.items,
    "HEADWATER_TOPICS__ADAPTERS": TOPICS.adapters,
    "HEADWATER_TOPICS__CONTROL": TOPICS.control,
    "HEADWATER_TOPICS__DEAD_LETTERS": TOPICS.dead_letters,
    "HEADWATER_ENCODER__MODEL": str(MODEL),
    "HEADWATER_ENCODER__LORA_RANK": "2",
    "HEADWATER_PRIVACY__SECRET": "only for tests",
    "HEADWATER_GUARD__BURST_EVENTS": "1000",
    "HEADWATER_GATE__MIN_EVENTS": "16",
    "HEADWATER_GATE__WINDOW_EVENTS": "64",
    "HEADWATER_LEARNER__LORA_EVERY_EVENTS": "1",
    "HEADWATER_LEARNER__LORA_REFRESH_STEPS": "1",
    "HEADWATER_LEARNER__LORA_AHEAD_BATCHES": "3",
    "HEADWATER_LEARNER__LORA_REPLAY_BATCHES": "2",
    "HEADWATER_LEARNER__LORA_ACCUMULATE": "2",
    "HEADWATER_UPDATER__BATCH_EVENTS": "12",
    "HEADWATER_UPDATER__BATCH_SECONDS": "0.1",
    "HEADWATER_UPDATER__CLICK_WINDOW_SECONDS": "30",
    "HEADWATER_UPDATER__PURCHASE_WINDOW_SECONDS": "120",
    "HEADWATER_UPDATER__HOLD_SECONDS": "1000000",
    "HEADWATER_UPDATER__METRICS_PORT": "0",
}


@cache
def encoder() -> Encoder:
    """Return an encoder over the stored model."""
    return Encoder(EncoderSettings(model=str(MODEL), lora_rank=2, cache_dir=None))


def platform() -> dict[str, str]:
    """Return what decides the last bits of a result."""
    return {"torch": torch.__version__, "numpy": np.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def catalogue_items() -> list[CatalogueItem]:
    """Return the catalogue of the bundles; every third item has an image vector."""
    items: list[CatalogueItem] = []
    for n in range(CATALOGUE_ITEMS):
        item_id, text = f"item-{n}", f"{WORDS[n]} {WORDS[(5 * n + 1) % len(WORDS)]}"
        image = item_vectors({"image": [1.0 + n, 2.0, -n]})
        items.append((item_id, text, image) if n % 3 == 0 else (item_id, text))
    return items


# ---- bundles


def scores(registry: AdapterRegistry, version: int) -> dict[str, dict[str, float]]:
    """Rank the catalogue with a version; return scores by history and item."""
    catalogue = catalogue_of(encoder(), catalogue_items())
    with tempfile.TemporaryDirectory() as directory:
        bundles = [
            read_bundle(
                registry.fetch("home", number, Path(directory) / str(number)), base_digest=encoder().base_digest
            )
            for number in registry.chain("home", version)
        ]
    model = build_model(bundles, previous=None, catalogue=catalogue, encoder=encoder())
    found = {}
    for name, history in HISTORIES.items():
        context = model.context([catalogue.rows[item] for item in history], [0] * len(history))
        found[name] = dict(zip(model.item_ids, model.ranker.score(context)[0].tolist(), strict=True))
    return found


# ---- the log


def read_log(connection: KafkaConnection) -> list[dict[str, Any]]:
    """Return all records that an updater reads, by topic, partition and offset."""
    lines = []
    for topic in (TOPICS.items, TOPICS.control, TOPICS.impressions, TOPICS.clicks, TOPICS.purchases):
        with closing(PartitionConsumer(connection, [topic])) as consumer:
            while any(consumer.lag().values()):
                lines += [
                    {
                        "topic": topic,
                        "partition": record.partition,
                        "offset": record.offset,
                        "timestamp_ms": record.timestamp_ms,
                        "key": None if record.key is None else record.key.decode(),
                        "value": None if record.value is None else record.value.decode(),
                    }
                    for record in consumer.poll(0.5)
                ]
    return sorted(lines, key=lambda line: (line["topic"], line["partition"], line["offset"]))


def write_log(connection: KafkaConnection, path: Path) -> None:
    """Send the records of a file to an empty broker: the same offsets, keys and times."""
    producer = KafkaProducer(**connection.client_options())
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    sent = []
    for record in records:
        key, value = (None if text is None else text.encode() for text in (record["key"], record["value"]))
        at = {"partition": record["partition"], "timestamp_ms": record["timestamp_ms"]}
        sent.append(producer.send(record["topic"], value, key=key, **at))
    assert [future.get(20).offset for future in sent] == [record["offset"] for record in records]
    producer.close()


@contextmanager
def broker(directory: Path) -> Iterator[KafkaConnection]:
    """Run a broker of its own with the golden topics."""
    with EmbeddedBroker(directory / "broker") as embedded:
        connection = KafkaConnection(bootstrap_servers=embedded.bootstrap_servers)
        ensure_topics(connection, TOPICS, partitions=PARTITIONS, replication_factor=1, bounded=True)
        yield connection


# ---- the updater


def updater(connection: KafkaConnection, directory: Path, **settings: object) -> UpdaterProcess:
    """Return an updater as a process; `settings` are of the section `updater`."""
    own = {f"HEADWATER_UPDATER__{name.upper()}": str(value) for name, value in settings.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    places = {
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": str(connection.bootstrap_servers),
        "HEADWATER_UPDATER__CHECKPOINT_DIR": str(directory / "checkpoints"),
        "HEADWATER_UPDATER__REGISTRY_URL": str(directory / "registry"),
        "HEADWATER_ENCODER__CACHE_DIR": str(directory / "cache"),
        "HEADWATER_LOG_LEVEL": "debug",
    }
    return UpdaterProcess(inherited | ENVIRONMENT | places | own, directory / "updater.log", TOPICS)


def is_learnt(root: Path, ends: Mapping[str, int]) -> bool:
    """Whether the newest checkpoint has come to these offsets."""
    kept = newest_checkpoint(root) if root.exists() else None
    if kept is None:
        return False
    offsets = json.loads((kept / "state.json").read_text())["extra"]["offsets"]
    return all(offsets.get(at, 0) >= end for at, end in ends.items())


def journaled(root: Path) -> list[dict[str, Any]]:
    """Return the lines of the newest journal."""
    path = max(root.glob("[0-9]*/journal-*.jsonl"), default=None)
    return [] if path is None else [json.loads(line) for line in path.read_text().splitlines()]


def repeat_journal(golden: Path, directory: Path) -> Path:
    """Restore the checkpoint in `directory`, repeat its journal, and return the checkpoint written then.

    Args:
        golden: directory of a release's artefacts, whose log is read.
        directory: working directory with a copy of its `checkpoints`.
    """
    root = directory / "checkpoints" / "home"
    ends = journaled(root)[-1]["ends"]
    with broker(directory) as connection:
        write_log(connection, golden / "log.jsonl.gz")
        with updater(connection, directory, checkpoint_seconds=0.2, publish_seconds=1_000) as process:
            wait_until(lambda: is_learnt(root, ends) or process.has_ended(), what="journal repeated")
            assert not process.has_ended(), process.log()
            assert process.end(signal.SIGTERM) == 0, process.log()
            assert '"resumed"' in process.log()
            assert "slices_not_repeated" not in process.log()
            assert "slice_not_repeated_exactly" not in process.log()
    kept = newest_checkpoint(root)
    assert kept is not None
    return kept
