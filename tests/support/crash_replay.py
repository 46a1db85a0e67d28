"""A replay whose updater is killed again and again; and the run that was never killed, fed the same slices."""

import importlib
import json
import os
import random
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from forked import fork_context
from updater_shop import START_MS, WAIT_SECONDS, Shop, items, newest_checkpoint, wait_until

from peft_adapters.registry.stores import FsspecStore
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.consumer import PartitionConsumer
from streams.errors import BrokerUnreachableError, DeliveryError
from streams.events import Click, Event, Impression, Item, Purchase, ShownItem
from streams.offsets import encode_offsets
from streams.producer import EventProducer

ITEMS, LATER_ITEMS, USERS = 20, 6, 9
NONSENSE = b"{nonsense"
WINDOWS = {"click_window_seconds": 30.0, "purchase_window_seconds": 120.0, "hold_seconds": 1e6}
# Event, checkpoint, publish, commit: before and after each step that leaves something behind.
STEPS = (
    "services.updater.intake:Intake.ingest",
    "services.updater.journal:Journal.record",
    "services.updater.journal:Journal.begin",
    "peft_adapters.learning.learner:Learner.learn",
    "peft_adapters.learning.learner:Learner.learn_lists",
    "streams.dead_letters:DeadLetterWriter.flush",
    "services.updater.checkpoint_store:CheckpointStore.save",
    "streams.join_store:JoinStore.commit",
    "services.updater.checkpoint_store:prune_checkpoints",
    "peft_adapters.lifecycle.publishing:Publisher.candidate",
    "peft_adapters.registry.registry:AdapterRegistry.publish",
    "peft_adapters.registry.ownership:OwnerFile.require",
    "services.updater.loop:Updater._announce",
    "streams.consumer:PartitionConsumer.commit",
    "os:fsync",
    "os:replace",
)


@dataclass(frozen=True, slots=True)
class Death:
    """SIGKILL from within, before or after the n-th time that something is done."""

    step: str
    times: int
    before: bool

    def arm(self) -> None:
        module_name, _, path = self.step.partition(":")
        owner: Any = importlib.import_module(module_name)
        *holders, name = path.split(".")
        for holder in holders:
            owner = getattr(owner, holder)
        done, left = getattr(owner, name), self.times

        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = done(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)


@dataclass(frozen=True, slots=True)
class StoreFault:
    """A registry that takes nothing while a file is there."""

    number: int  # errno
    flag: Path

    def arm(self) -> None:
        for name in ("write", "upload"):
            setattr(FsspecStore, name, self._failing(getattr(FsspecStore, name)))

    def _failing(self, done: Callable[..., None]) -> Callable[..., None]:
        def failing(*args: Any, **kwargs: Any) -> None:
            if self.flag.exists():
                raise OSError(self.number, os.strerror(self.number))
            done(*args, **kwargs)

        return failing


def random_death(rng: random.Random) -> Death:
    step = rng.choice(STEPS)
    often = 12 if step.startswith("os:") else 3
    return Death(step, rng.randint(1, often), before=rng.random() < 0.5)


class Traffic:
    """Events as a shop has them: lists, clicks on them, purchases; repeats, nonsense, and items that come late."""

    def __init__(self, seed: int, *, start_ms: int = START_MS, step_ms: int = 1_000) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._start_ms, self._step_ms = start_ms, step_ms
        self._number = 0
        self._sent: list[Event] = []
        self._shown: list[Impression] = []
        self.positives: set[str] = set()  # event ids that are to be learnt
        self.records: Counter[str] = Counter()  # by kind

    def next(self, count: int) -> Iterator[tuple[str, bytes, bytes]]:
        """Kind, key and value of so many records."""
        for _ in range(count):
            self._number += 1
            event = self._event()
            self.records[event.KIND] += 1
            if self._rng.random() < 0.03:
                yield event.KIND, event.key().encode(), NONSENSE
                continue
            self._sent.append(event)
            if isinstance(event, Click | Purchase):
                self.positives.add(f"{event.KIND}/{event.event_id}")
            yield event.KIND, event.key().encode(), event.model_dump_json(exclude_none=True).encode()

    def later_items(self) -> list[Item]:
        """What some of the events wait for."""
        return items(LATER_ITEMS, first=ITEMS)

    def _event(self) -> Event:
        rng = self._rng
        if self._sent and rng.random() < 0.05:
            return rng.choice(self._sent[-50:])
        ts, user = self._start_ms + self._step_ms * self._number, f"shopper-{rng.randrange(USERS)}"
        if rng.random() < 0.35:
            shown = rng.sample(range(ITEMS + LATER_ITEMS), rng.randint(2, 6))
            impression = Impression(
                event_id=f"e{self._number}",
                ts=ts,
                user_id=user,
                request_id=f"r{self._number}",
                scenario="home",
                items=tuple(ShownItem(item_id=f"i{item}", position=place) for place, item in enumerate(shown)),
            )
            self._shown.append(impression)
            return impression
        model = Click if rng.random() < 0.7 else Purchase
        request = rng.choice(self._shown[-20:]) if self._shown and rng.random() < 0.7 else None
        item = rng.choice(request.items)["item_id"] if request else f"i{rng.randrange(ITEMS + LATER_ITEMS)}"
        return model(
            event_id=f"e{self._number}",
            ts=ts,
            user_id=request.user_id if request else user,
            item_id=item,
            request_id=request.request_id if request and rng.random() < 0.7 else None,
        )


class CrashReplay:
    """One replay through updaters that die.

    Args:
        shop: where events go and things are kept.
        seed: of the traffic and of the deaths.
    """

    def __init__(self, shop: Shop, *, seed: int, batch_events: int = 16) -> None:
        self.shop, self.traffic = shop, Traffic(seed)
        self._rng = random.Random(seed)  # noqa: S311
        options: dict[str, Any] = {"batch_events": batch_events, "batch_seconds": 0.1, "keep_checkpoints": 1_000}
        self.settings = _with_secret(shop.settings(checkpoint_seconds=1.0, publish_seconds=0.2, **options, **WINDOWS))
        self._ends: dict[str, None] = {}  # lines of journals, as a set
        self._lives = 0
        self._deaths: list[str] = []
        shop.send(*items(ITEMS))

    def send(self, count: int) -> None:
        """Send so many, until the broker has confirmed each; what comes twice by that is known by its event id."""
        topics = self.shop.topics
        records = [(topics.of_kind(kind), key, value) for kind, key, value in self.traffic.next(count)]
        while not self._is_confirmed(records):
            wait_for_broker(self.shop.connection, timeout_seconds=WAIT_SECONDS)

    def _is_confirmed(self, records: Iterable[tuple[str, bytes, bytes]]) -> bool:
        try:
            with EventProducer(self.shop.connection, self.shop.topics) as producer:
                for topic, key, value in records:
                    producer.send_raw(topic, key, value)
                producer.flush(WAIT_SECONDS)
        except (BrokerUnreachableError, DeliveryError):
            return False
        return True

    def start(self, settings: Settings | None = None, fault: Death | StoreFault | None = None) -> ForkServerProcess:
        self._lives += 1
        process = fork_context().Process(target=_live, args=(settings or self.settings, fault, self.log()))
        process.start()
        return process

    def log(self) -> Path:
        """Of the newest life."""
        return self.shop.directory / f"life-{self._lives:03d}.log"

    def die(self) -> None:
        """One life and its death."""
        if self._rng.random() < 0.7:
            death = random_death(self._rng)
            process = self.start(fault=death)
            process.join(20)
            how = str(death)
        else:
            seconds = self._rng.uniform(0.2, 2.0)
            process = self.start()
            process.join(seconds)
            how = f"killed after {seconds:.2f} s"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{how}: ended by itself with {process.exitcode}"
        self.note_slices()
        self._deaths.append(how)

    def finish(self, settings: Settings | None = None) -> None:
        """A life that is let live until everything is learnt."""
        with self.life(settings):
            pass

    @contextmanager
    def life(self, settings: Settings | None = None, fault: StoreFault | None = None) -> Iterator[None]:
        """The same, with something to be done in it first."""
        process = self.start(settings, fault)
        try:
            yield
            self._end(process, (settings or self.settings).updater.checkpoint_dir / "home")
        finally:
            process.kill()
            process.join()

    def _end(self, process: ForkServerProcess, root: Path) -> None:
        ends = self._log_ends()
        wait_until(lambda: _stands_at(root, ends) or not process.is_alive(), what="everything learnt")
        assert process.is_alive(), f"ended by itself, see {self.log()}"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 0

    def version(self) -> int:
        """The newest one published; 0 before the first."""
        newest = self.shop.registry.latest("home")
        return newest.version if newest else 0

    def wait_for_version(self, version: int) -> None:
        wait_until(lambda: self.version() >= version, what=f"version {version}")

    def learnt(self) -> int:
        """Events that the newest checkpoint has learnt."""
        learnt: int = self.shop.checkpointed()["events_learned"]
        return learnt

    def check(self) -> None:
        """See that nothing is lost and nothing twice, and that a run which was never killed ends bit for bit there."""
        self.note_slices()
        self._check_counts()
        unkilled = self.unkilled()
        self.finish(unkilled)
        ended, right = (at.updater.checkpoint_dir / "home" for at in (self.settings, unkilled))
        assert differences(ended, right) == [], self._deaths
        for life in self.shop.directory.glob("life-*.log"):
            assert "Traceback" not in life.read_text()
            assert "shopper-" not in life.read_text()  # no raw id in any log

    def _check_counts(self) -> None:
        shop, topics, kept = self.shop, self.shop.topics, self.shop.checkpointed()
        joined = Counter({(topic, outcome): n for topic, outcome, n in kept["intake"]["joiner"]["counts"]})
        others = Counter({(topic, outcome): n for topic, outcome, n in kept["intake"]["outcomes"]})
        for kind, sent in self.traffic.records.items():
            topic = topics.of_kind(kind)
            logged = [record.value for record in shop.records(topic)]
            assert len(logged) >= sent  # more where it was sent again
            assert others[topic, "dead_letter"] == logged.count(NONSENSE)
            assert joined[topic, "in"] + others[topic, "dead_letter"] == len(logged)
        refused = sum(n for (_, outcome), n in others.items() if outcome == "dead_letter")
        assert len({letter.record_key() for letter in shop.letters()}) == refused
        positives = (topics.clicks, topics.purchases)
        assert sum(joined[topic, "learnt"] for topic in positives) == len(self.traffic.positives)
        quarantined = sum(others[topic, "quarantined"] for topic in positives)  # the joiner gave them out, too
        assert kept["events_learned"] == len(self.traffic.positives) - quarantined
        assert joined[topics.impressions, "learnt"] > 0
        versions = [manifest.version for manifest in shop.announced()]
        assert versions == sorted(set(versions))
        assert shop.latest().events_learned == kept["events_learned"]

    def _log_ends(self) -> dict[str, int]:
        topics = [self.shop.topics.of_kind(kind) for kind in (Item.KIND, *self.traffic.records)]
        with closing(PartitionConsumer(self.shop.connection, topics)) as consumer:
            return encode_offsets(consumer.end_offsets())

    def unkilled(self) -> Settings:
        """Settings of a run over the same log, from nothing, fed the slices that were recorded."""
        directory = self.shop.directory / "unkilled"
        fresh = directory / "checkpoints" / "home" / f"{1:08d}"
        fresh.mkdir(parents=True)
        lines = sorted(self._ends, key=_records_read)
        (fresh / f"journal-{0:010d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        own = {"checkpoint_dir": directory / "checkpoints", "registry_url": str(directory / "registry")}
        return self.settings.model_copy(update={"updater": self.settings.updater.model_copy(update=own)})

    def note_slices(self) -> None:
        """Take down where slices ended, before a successor tidies up."""
        for path in (self.shop.directory / "checkpoints" / "home").glob("[0-9]*/journal-*.jsonl"):
            for line in path.read_text().split("\n")[:-1]:
                self._ends[line] = None


def _records_read(line: str) -> int:
    """Before the end of a slice, which is a line of a journal."""
    return sum(json.loads(line)["ends"].values())


def _stands_at(root: Path, ends: dict[str, int]) -> bool:
    kept = newest_checkpoint(root) if root.exists() else None
    if kept is None:
        return False
    offsets = json.loads((kept / "state.json").read_text())["extra"]["offsets"]
    return all(offsets.get(at, 0) >= end for at, end in ends.items())


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the states that two updaters ended in; nothing, if they are equal bit for bit."""
    left, right = newest_checkpoint(one), newest_checkpoint(other)
    assert left is not None
    assert right is not None
    tensors, others = (
        {f"{name}/{key}": value for name in ("model", "beside") for key, value in _tensors(path, name).items()}
        for path in (left, right)
    )
    found = [name for name in tensors.keys() ^ others.keys()]
    found += [name for name in tensors.keys() & others.keys() if not torch.equal(tensors[name], others[name])]
    states = [json.loads((path / "state.json").read_text()) for path in (left, right)]
    for part in ("learner", "extra"):
        found += [f"{part}.{key}" for key in states[0][part] if states[0][part][key] != states[1][part][key]]
    for table in ("shown", "held", "seen"):
        if _rows(left.parent / "join.sqlite", table) != _rows(right.parent / "join.sqlite", table):
            found.append(f"table {table}")
    return found


def _tensors(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint / f"{name}.safetensors")


def _rows(path: Path, table: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608


def _with_secret(settings: Settings) -> Settings:
    secret = settings.privacy.model_validate({"secret": "only for tests"})
    return settings.model_copy(update={"privacy": secret})


def _live(settings: Settings, fault: Death | StoreFault | None, log: Path) -> None:
    from services.metrics.series import new_registry
    from services.metrics.updater import UpdaterMetrics
    from services.updater.loop import Updater

    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    stop = threading.Event()
    handler: Callable[..., None] = lambda *_: stop.set()  # noqa: E731
    signal.signal(signal.SIGTERM, handler)
    if fault is not None:
        fault.arm()
    try:
        Updater(settings, UpdaterMetrics(new_registry(), topics=settings.topics), stop).run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
