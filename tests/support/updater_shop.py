"""What stands around an updater in tests: producers, readers of what it publishes, and itself as a process."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import httpx
from forked import Fault, ForkedCommand
from kafka import KafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families
from tiny_model import tiny_bert

from peft_adapters.lifecycle.checkpoint import checkpoint_path
from peft_adapters.registry.manifest import Manifest, parse_manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.settings import EncoderSettings
from services.settings import Settings
from services.settings.updater import UpdaterSettings
from streams.connection import KafkaConnection
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetter
from streams.events import Click, Event, Item, Purchase
from streams.guard_settings import GuardSettings
from streams.producer import EventProducer
from streams.record import Record
from streams.topics import Topics

WAIT_SECONDS = 120.0
START_MS = 1_770_000_000_000
WORDS = ("red", "blue", "oak", "glass", "mug", "lamp", "rug", "bird")
# Partitions come in whatever order; in some, so few users with so few items look like spam.
NO_BURSTS = GuardSettings(burst_events=1_000)
FINGERPRINT = 1  # record of an updater's own on the control topic: which secret it has
SETTLED = ("learnt", "dead_letter", "duplicate", "expired", "ignored", "forgotten", "quarantined", "capped", "missed")


def items(count: int, *, first: int = 0) -> list[Item]:
    return [
        Item(event_id=f"item-{n}", ts=START_MS, item_id=f"i{n}", kind="product", title=f"{WORDS[n % 8]} {WORDS[n % 7]}")
        for n in range(first, first + count)
    ]


def events(count: int, *, first: int = 0, items: int = 20, users: int = 7) -> list[Click | Purchase]:
    """Clicks, and every third a purchase, a second apart."""
    return [
        (Purchase if n % 3 == 2 else Click)(
            event_id=f"e{n}", ts=START_MS + 1_000 * n, user_id=f"u{n % users}", item_id=f"i{n * n % items}"
        )
        for n in range(first, first + count)
    ]


def wait_until(true: Callable[[], bool], *, what: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def newest_checkpoint(root: Path) -> Path | None:
    """The checkpoint that counts, of an updater's directory."""
    epoch = max((path for path in root.iterdir() if path.name.isdigit()), default=None)
    if epoch is None or not (epoch / "join.sqlite").exists():
        return None
    with closing(sqlite3.connect(f"file:{epoch / 'join.sqlite'}?mode=ro", uri=True)) as store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return None  # it is being made
        row = store.execute("SELECT value FROM meta WHERE key = 'checkpoint'").fetchone()
    return checkpoint_path(epoch, int(row[0])) if row else None


class Shop:
    """Topics of its own on some broker, and a directory for what an updater keeps and publishes."""

    def __init__(self, connection: KafkaConnection, topics: Topics, directory: Path) -> None:
        self.connection, self.topics, self.directory = connection, topics, directory
        self.registry = AdapterRegistry(str(directory / "registry"))

    # ---- what goes in

    def send(self, *events: Event) -> None:
        with EventProducer(self.connection, self.topics) as producer:
            for event in events:
                producer.send(event)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        with EventProducer(self.connection, self.topics) as producer:
            producer.send_raw(topic, key, value)

    # ---- what comes out

    def announced(self) -> list[Manifest]:
        """All announcements, compaction aside, in order."""
        return [parse_manifest(r.value or b"", source="announced") for r in self.records(self.topics.adapters)]

    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.model_validate_json(r.value or b"") for r in self.records(self.topics.dead_letters)]

    def latest(self) -> Manifest:
        latest = self.registry.latest("home")
        assert latest is not None
        return latest

    def committed(self) -> dict[tuple[str, int], int]:
        """Offsets recorded for lag tools."""
        with KafkaAdminClient(**self.connection.client_options()) as admin:
            marks = admin.list_group_offsets(["headwater-updater-home"])["headwater-updater-home"]
        mine = set(self.topics.names())
        return {(at.topic, at.partition): mark.offset for at, mark in marks.items() if at.topic in mine}

    def checkpointed(self) -> dict[str, Any]:
        """What the newest checkpoint keeps beside the learner, with `events_learned`."""
        kept = newest_checkpoint(self.directory / "checkpoints" / "home")
        assert kept is not None
        state: dict[str, Any] = json.loads((kept / "state.json").read_text())
        extra: dict[str, Any] = state["extra"]
        return extra | {"events_learned": state["learner"]["events_learned"]}

    def records(self, topic: str) -> list[Record]:
        """All that is in a topic, by partition and offset."""
        consumer = PartitionConsumer(self.connection, [topic])
        try:
            found: list[Record] = []
            while any(consumer.lag().values()):
                found += consumer.poll(0.5)
            return sorted(found, key=lambda record: (record.partition, record.offset))
        finally:
            consumer.close()

    # ---- the updater

    def settings(self, **updater: Any) -> Settings:
        """For an updater in this process: small batches, and a publication after each."""
        own = {
            "batch_events": 10,
            "batch_seconds": 0.2,
            "late_seconds": 3_600.0,  # on a slow machine, too, LoRA skips nothing: runs of the same events are compared
            "checkpoint_seconds": 0.0,
            "publish_seconds": 0.0,
            "publish_share": 1,
            "metrics_port": 0,
        } | updater
        places = {"checkpoint_dir": self.directory / "checkpoints", "registry_url": str(self.directory / "registry")}
        return Settings(
            kafka=self.connection,
            topics=self.topics,
            encoder=EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None),
            updater=UpdaterSettings.model_validate(places | own),
            guard=NO_BURSTS,
        )

    def process(self, *, log: str = "updater.log", fault: Fault | None = None, **updater: Any) -> "UpdaterProcess":
        """The same settings for one in a process of its own."""
        settings = self.settings(**updater)
        kafka = settings.kafka.model_dump(exclude_defaults=True) | {
            "bootstrap_servers": self.connection.bootstrap_servers
        }
        if self.connection.sasl_password is not None:
            kafka["sasl_password"] = self.connection.sasl_password.get_secret_value()
        sections = {
            "KAFKA": kafka,
            "TOPICS": self.topics.model_dump(),
            "ENCODER": {"model": settings.encoder.model, "lora_rank": 4, "cache_dir": self.directory / "cache"},
            "GUARD": NO_BURSTS.model_dump(exclude_defaults=True),
            "UPDATER": settings.updater.model_dump(exclude_none=True),
        }
        ours = {f"HEADWATER_{name}__{k.upper()}": str(v) for name, part in sections.items() for k, v in part.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        env = inherited | ours | {"HEADWATER_LOG_LEVEL": "debug"}
        return UpdaterProcess(env, self.directory / log, self.topics, fault=fault)


class UpdaterProcess:
    """`headwater updater`, killed when a test leaves it behind."""

    def __init__(self, env: dict[str, str], log: Path, topics: Topics, *, fault: Fault | None = None) -> None:
        self._fault = fault
        self._env, self._log, self._topics = env, log, (topics.clicks, topics.purchases)
        self._log_start = log.stat().st_size if log.exists() else 0

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = ForkedCommand(
                ["updater"], env=self._env, stdout=subprocess.PIPE, stderr=log, text=True, fault=self._fault
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        assert said[:1] == ["listening"], self.log()
        self.url = f"http://{said[1]}:{said[2]}/metrics"
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            self._process.send_signal(signal.SIGUSR1)  # where it stands
            time.sleep(0.5)
            error.add_note(f"the updater's last lines:\n{self.log()[-6000:]}")
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = WAIT_SECONDS) -> int:
        """Its exit status after a signal."""
        self.signal(number)
        return self.ended(seconds=seconds)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ended(self, *, seconds: float = WAIT_SECONDS) -> int:
        """Its exit status, once it has ended by itself."""
        return self._process.wait(seconds)

    def log(self) -> str:
        return self._log.read_bytes()[self._log_start :].decode()

    def told(self, event: str) -> list[dict[str, Any]]:
        """Lines of its log about an event."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def counts(self, topic: str) -> dict[str, int]:
        """What its metrics page says became of the events of a topic."""
        found = {}
        for name, labels, value, *_ in self._samples():
            if name in ("headwater_events_total", "headwater_events_pending") and labels["topic"] == topic:
                found[labels.get("outcome", "pending")] = int(value)
        return found

    def total(self, outcome: str) -> int:
        """The same over clicks and purchases."""
        return sum(self.counts(topic)[outcome] for topic in self._topics)

    def wait_for(self, outcome: str, number: int) -> None:
        """Until so many clicks and purchases, or more, came to that."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.total(outcome) < number:
            assert time.monotonic() < deadline, f"not {number} {outcome}, but {[self.counts(t) for t in self._topics]}"
            time.sleep(0.05)

    def value(self, metric: str, **labels: str) -> float:
        """One number of its metrics page."""
        return next(float(value) for name, its, value, *_ in self._samples() if name == metric and its == labels)

    def _samples(self) -> list[Any]:
        text = httpx.get(self.url, timeout=10).raise_for_status().text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
