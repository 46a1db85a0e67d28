"""Write the golden artefacts of the current version: `PYTHONPATH=.:tests/support python tests/golden/make.py 0.2`."""

import gzip
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import golden
import torch
from learnt_chain import Publications
from tiny_model import TINY_SHAPE, shown_stream
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from updater_shop import START_MS, newest_checkpoint, wait_until

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Canary
from peft_adapters.settings import EncoderSettings
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.events import Click, Event, Impression, Item, Purchase, ShownItem
from streams.producer import EventProducer

_ITEMS, _USERS = 14, 5
_NONSENSE = b"{nonsense"


def make_model(directory: Path) -> None:
    """Write a 3-layer BERT with random weights and a vocabulary of a few words."""
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *golden.WORDS])}
    shape = TINY_SHAPE | {"vocab_size": len(vocabulary), "hidden_size": 8, "intermediate_size": 16}
    BertModel(BertConfig(**shape | {"max_position_embeddings": 64})).save_pretrained(directory)
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        model_max_length=64,
    ).save_pretrained(directory)


def make_registry(directory: Path) -> None:
    """Publish a full bundle and two deltas; pin the first version and let the second answer as a canary."""
    registry = AdapterRegistry(str(directory / "registry"))
    with tempfile.TemporaryDirectory() as staging:
        os.chdir(golden.ROOT)  # bundles name the model's path
        encoder = Encoder(EncoderSettings(model=golden.MODEL.name, lora_rank=2, cache_dir=None))
        publications = Publications(Path(staging), encoder)
        learner = publications.learner
        learner.add_items(golden.catalogue_items())
        lists = iter(shown_stream(24, items=golden.CATALOGUE_ITEMS, seed=3, liked=4, length=5))
        for version in (1, 2, 3):
            for _ in range(4):
                publications.learn(16)
            for shown, clicks in [next(lists) for _ in range(8)]:
                if clicks:
                    learner.learn(learner.observe(clicks))
                learner.learn_lists(learner.observe_lists([shown]))
            path = publications.full(version) if version == 1 else publications.delta(version)
            registry.publish(path, publications.read(path).manifest)
    rollout = registry.rollout("home").pinned(1, changed_by="ann", reason="the morning's clicks were a test")
    registry.set_rollout(rollout)
    canary = Canary(version=3, percent=25, auto_rollback=True)
    registry.set_rollout(rollout.with_canary(canary, latest=3, changed_by="ann", reason="try the newest"))
    known = {str(version): golden.scores(registry, version) for version in (1, 2, 3)}
    (directory / "scores.json").write_text(json.dumps(known, indent=1) + "\n")


def make_checkpoint(directory: Path) -> None:
    """Kill an updater that has journaled slices since its checkpoint; keep the log, and what the journal leads to."""
    with tempfile.TemporaryDirectory() as work:
        at = Path(work)
        root = at / "checkpoints" / "home"
        traffic = _traffic()
        with golden.broker(at) as connection:
            _send(connection, _items())
            _send(connection, [next(traffic) for _ in range(120)])
            with golden.updater(connection, at, checkpoint_seconds=0.2, publish_seconds=0.2) as updater:
                wait_until(lambda: golden.is_learnt(root, _log_ends(connection)), what="first events learnt")
                assert updater.end() == 0
            # The first slice is followed by a checkpoint, and the gap to the next is longer than the run.
            with golden.updater(connection, at, checkpoint_seconds=1_000, publish_seconds=0.2) as updater:
                for _ in range(6):
                    _send(connection, [next(traffic) for _ in range(20)])
                    wait_until(lambda: _is_journaled(root, _log_ends(connection)), what="later events journaled")
                updater.kill()
            log = golden.read_log(connection)
        with gzip.GzipFile(directory / "log.jsonl.gz", "wb", mtime=0) as file:
            file.write("".join(f"{json.dumps(line)}\n" for line in log).encode())
        _keep_newest(root, directory / "checkpoints" / "home")
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(directory / "checkpoints", Path(work) / "checkpoints")
        repeated = golden.repeat_journal(directory, Path(work))
        (directory / "repeated").mkdir()
        shutil.copy(repeated / "model.safetensors", directory / "repeated" / "model.safetensors")
        learner = json.loads((repeated / "state.json").read_text())["learner"]
        (directory / "repeated" / "learner.json").write_text(json.dumps(learner) + "\n")


def _keep_newest(root: Path, target: Path) -> None:
    """Copy the newest epoch with its newest checkpoint and journal alone."""
    checkpoint = newest_checkpoint(root)
    assert checkpoint is not None
    epoch = checkpoint.parent
    assert epoch == max(root.glob("[0-9]*"))
    (target / epoch.name).mkdir(parents=True)
    shutil.copytree(checkpoint, target / epoch.name / checkpoint.name)
    (target / epoch.name / checkpoint.name / "join.sqlite").unlink(missing_ok=True)  # of the epoch is enough
    sums = target / epoch.name / checkpoint.name / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "join.sqlite" not in line))
    journal = epoch / f"journal-{checkpoint.name}.jsonl"
    shutil.copy(journal, target / epoch.name / journal.name)
    with closing(sqlite3.connect(epoch / "join.sqlite")) as store:  # with its write-ahead log, in one file
        store.execute("VACUUM INTO ?", (str(target / epoch.name / "join.sqlite"),))


def _log_ends(connection: KafkaConnection) -> dict[str, int]:
    topics = [golden.TOPICS.items, golden.TOPICS.impressions, golden.TOPICS.clicks, golden.TOPICS.purchases]
    consumer = PartitionConsumer(connection, topics)
    try:
        return {f"{topic}/{partition}": end for (topic, partition), end in consumer.end_offsets().items()}
    finally:
        consumer.close()


def _is_journaled(root: Path, ends: dict[str, int]) -> bool:
    lines = golden.journaled(root)
    return bool(lines) and all(lines[-1]["ends"].get(at, 0) >= end for at, end in ends.items())


def _send(connection: KafkaConnection, events: list[Event | None]) -> None:
    with EventProducer(connection, golden.TOPICS) as producer:
        for event in events:
            if event is None:
                producer.send_raw(golden.TOPICS.clicks, b"u0", _NONSENSE)
            else:
                producer.send(event)


def _items() -> list[Event | None]:
    return [
        Item(
            event_id=f"item-{n}",
            ts=START_MS,
            item_id=f"i{n}",
            kind="product",
            title=f"{golden.WORDS[n % 12]} {golden.WORDS[(5 * n + 1) % 12]}",
            vectors={"image": [1.0 + n, 2.0, -n]} if n % 3 == 0 else {},
        )
        for n in range(_ITEMS)
    ]


def _traffic() -> Iterator[Event | None]:
    """Lists, some of them of a search; clicks and purchases in them and elsewhere; repeats and nonsense (None)."""
    rng = random.Random(5)  # noqa: S311
    shown: list[Impression] = []
    sent: list[Event] = []
    number = 0
    while True:
        number += 1
        ts, user = START_MS + 1_500 * number, f"u{rng.randrange(_USERS)}"
        event: Event
        if number % 29 == 0:
            yield None
            continue
        if number % 31 == 0:
            yield rng.choice(sent)
            continue
        if rng.random() < 0.35:
            items = rng.sample(range(_ITEMS), rng.randint(2, 5))
            event = Impression(
                event_id=f"e{number}",
                ts=ts,
                user_id=user,
                request_id=f"r{number}",
                scenario="home",
                query=" ".join(rng.sample(golden.WORDS, 2)) if rng.random() < 0.4 else None,
                items=tuple(ShownItem(item_id=f"i{item}", position=place) for place, item in enumerate(items)),
            )
            shown.append(event)
        else:
            request = rng.choice(shown[-30:]) if shown and rng.random() < 0.8 else None
            event = (Click if rng.random() < 0.7 else Purchase)(
                event_id=f"e{number}",
                ts=ts,
                user_id=request.user_id if request else user,
                item_id=rng.choice(request.items)["item_id"] if request else f"i{rng.randrange(_ITEMS)}",
                request_id=request.request_id if request else None,
            )
        sent.append(event)
        yield event


def main(version: str) -> None:
    """Write all artefacts of a version again."""
    if not golden.MODEL.exists():
        make_model(golden.MODEL)
    directory = golden.ROOT / version
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir()
    make_registry(directory)
    make_checkpoint(directory)
    (directory / "platform.json").write_text(json.dumps(golden.platform(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
