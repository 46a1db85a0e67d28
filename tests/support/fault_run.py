"""A run of one updater through many random faults, and the account that must be exact at its end.

Every record that is sent is noted with its place in the log. At the end each topic's counts must add up to exactly the
records that were in it, over all logs that it ever was: those that retention deleted unread as `missed`, nonsense as
dead letters, repeats as duplicates, and every other click and purchase learnt or capped once. No log line may hold a
traceback.
"""

import json
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash_replay import ITEMS, NONSENSE, WINDOWS, Traffic, random_death
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import NewPartitions
from small_disk import small_disk
from updater_shop import SETTLED, Shop, UpdaterProcess, items, newest_checkpoint, wait_until

from peft_adapters.lifecycle.checkpoint import checkpoint_numbers
from streams.connection import open_client
from streams.offsets import partition_name
from streams.topic_creation import ensure_topics

# No checkpoint yet, one pruned while it is read, a file that is replaced, or a disk that is full at this moment.
_NOT_READABLE_YET = (AssertionError, OSError, KeyError, ValueError, sqlite3.OperationalError)
DISK_MEBIBYTES = 64
CLOCK_SECONDS = 3_000.0  # below a day, beyond which events would be dead letters
MOST_PARTITIONS = 6
SHOPPER_KINDS = ("impression", "click", "purchase")


@dataclass(frozen=True, slots=True)
class Sent:
    """A record and where it is; `log_number` counts the logs that its topic has been."""

    topic: str
    log_number: int
    partition: int
    offset: int
    event: str | None  # kind and id; None for nonsense


@dataclass(frozen=True, slots=True)
class WrongClock:
    """A process whose clock is wrong."""

    seconds: float

    def arm(self) -> None:
        right, right_ns = time.time, time.time_ns
        time.time = lambda: right() + self.seconds
        time.time_ns = lambda: right_ns() + int(self.seconds * 1e9)


class FaultRun:
    """One updater, its faults and its accounts.

    Args:
        shop: a broker, topics and directories.
        seed: of traffic and faults.
    """

    def __init__(self, shop: Shop, *, seed: int) -> None:
        self.shop = shop
        self.happened: list[str] = []
        self._rng = random.Random(seed)  # noqa: S311
        self._traffic = Traffic(seed, start_ms=time.time_ns() // 1_000_000 - 1_800_000, step_ms=100)
        self._sent: list[Sent] = []
        self._missed: set[Sent] = set()
        self._logs: Counter[str] = Counter()
        self._lives = 0
        self._root = shop.directory / "checkpoints" / "home"
        self._undo = ExitStack()
        self._topics = {kind: shop.topics.of_kind(kind) for kind in SHOPPER_KINDS}
        self._admin: Any = self._undo.enter_context(_closing(open_client(KafkaAdminClient, shop.connection)))
        self._producer: Any = None

    # ---- the run

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Mount the disk, send the catalogue, and tidy up in the end."""
        with self._undo:
            self._disk = self._undo.enter_context(small_disk(self._root.parent, mebibytes=DISK_MEBIBYTES))
            self.shop.send(*items(ITEMS))
            yield

    def faults(self) -> list[Callable[[], None]]:
        """The kinds of fault."""
        of_processes = [self.kill, self.wrong_clock]
        of_disks = [self.tear_checkpoint, self.tear_journal, self.fill_disk]
        of_logs = [self.recreate_topic, self.add_partition, self.delete_unread, self.future_event]
        return [*of_processes, *of_disks, *of_logs]

    def run(self, faults: int) -> None:
        """Let so many faults happen, each kind as often as the others, and check the account."""
        kinds = self.faults()
        order = [kinds[number % len(kinds)] for number in range(faults)]
        self._rng.shuffle(order)
        for number, fault in enumerate(order):
            if number == faults // 2:
                self.shop.send(*self._traffic.later_items())
            self.send(self._rng.randint(5, 25))
            self.happened.append(fault.__name__)
            fault()
        self.send(30)
        with self.life():
            self.wait_until_read()
        self.check()

    def check(self) -> None:
        """See that the account is exact and that no process ended in a traceback."""
        with self.life() as updater:
            self.wait_until_read()
            sent = Counter(each.topic for each in self._sent)
            wait_until(
                lambda: all(updater.counts(topic)["in"] >= count for topic, count in sent.items()), what="all counted"
            )
            counts = {topic: updater.counts(topic) for topic in self._topics.values()}
        for topic, found in counts.items():
            own = [each for each in self._sent if each.topic == topic]
            assert found["in"] == sum(found[outcome] for outcome in (*SETTLED, "pending")), (topic, found)
            assert found["in"] == len(own), (topic, found, len(own), self.happened)
            assert found["missed"] == sum(each in self._missed for each in own), (topic, found, self.happened)
            read = [each.event for each in own if each not in self._missed]
            assert found["dead_letter"] == read.count(None), (topic, found, self.happened)
            events = [event for event in read if event is not None]
            assert found["duplicate"] == len(events) - len(set(events)), (topic, found, self.happened)
            if topic != self._topics["impression"]:
                # Nine shoppers are as busy as hundreds: the guard caps some of what they do.
                assert found["learnt"] + found["capped"] == len(set(events)), (topic, found, self.happened)
        for log in self.shop.directory.glob("life-*.log"):
            assert "Traceback" not in log.read_text(), log

    # ---- traffic

    def send(self, count: int) -> None:
        """Send records, note where each is."""
        for kind, key, value in self._traffic.next(count):
            self._send(kind, key, value)
        self._producer.flush()

    def _send(self, kind: str, key: bytes, value: bytes, *, timestamp_ms: int | None = None) -> None:
        topic = self._topics[kind]
        if self._producer is None:
            self._producer = self._undo.enter_context(_closing(open_client(KafkaProducer, self.shop.connection)))
        event = None if value == NONSENSE else f"{kind}/{_event_id(value)}"
        at = self._producer.send(topic, key=key, value=value, timestamp_ms=timestamp_ms).get(timeout=30)
        self._sent.append(Sent(topic, self._logs[topic], at.partition, at.offset, event))

    # ---- lives of the updater

    @contextmanager
    def life(self, fault: Any = None) -> Iterator[UpdaterProcess]:
        """Start the updater; it is stopped with SIGTERM in the end unless it has ended."""
        self._lives += 1
        process = self.shop.process(
            log=f"life-{self._lives:03d}.log", fault=fault, checkpoint_seconds=0.5, publish_seconds=0.2, **WINDOWS
        )
        with process as updater:
            yield updater
            if not updater.has_ended():
                assert updater.end() == 0, (self.happened, updater.log()[-3000:])

    def wait_until_read(self) -> None:
        """Until the newest checkpoint has read every record of the logs as they are now."""
        ends: dict[str, int] = {}
        for sent in self._sent:
            if sent.log_number == self._logs[sent.topic]:
                at = partition_name(sent.topic, sent.partition)
                ends[at] = max(ends.get(at, 0), sent.offset + 1)

        def is_read() -> bool:
            with suppress(*_NOT_READABLE_YET):
                offsets = self.shop.checkpointed()["offsets"]
                return all(offsets.get(at, 0) >= end for at, end in ends.items())
            return False

        wait_until(is_read, what=f"all read, after {self.happened[-3:]}")

    # ---- faults

    def kill(self) -> None:
        """SIGKILL at a random moment, or from within a step."""
        if self._rng.random() < 0.5:
            with self.life(random_death(self._rng)) as updater:
                self.send(10)
                with suppress(subprocess.TimeoutExpired):
                    updater.ended(seconds=5)
                updater.kill()
            return
        with self.life() as updater:
            self.send(10)
            time.sleep(self._rng.uniform(0.0, 1.5))
            updater.kill()

    def tear_checkpoint(self) -> None:
        """Damage a file of the newest checkpoint after a kill: the one before is taken."""
        with self.life() as updater:
            self.wait_until_read()
            self.send(10)
            wait_until(lambda: self._numbers() > 1, what="two checkpoints")
            updater.kill()
        newest = newest_checkpoint(self._root)
        assert newest is not None
        torn = newest / self._rng.choice(("model.safetensors", "state.json"))
        _truncate(torn, self._rng)
        with self.life() as updater:
            wait_until(lambda: newest.name in updater.log(), what="the damaged checkpoint is named")
            self.wait_until_read()

    def tear_journal(self) -> None:
        """Cut the last line of the newest journal short, as a power cut may."""
        with self.life() as updater:
            self.send(10)
            time.sleep(self._rng.uniform(0.0, 1.0))
            updater.kill()
        journal = max(self._root.glob("[0-9]*/journal-*.jsonl"), key=lambda path: (path.parent.name, path.name))
        with journal.open("a") as file:
            file.write('{"ends": {"')

    def future_event(self) -> None:
        """One event from a producer whose clock is ahead by most of an hour."""
        ahead_ms = time.time_ns() // 1_000_000 + self._rng.randint(600_000, 3_540_000)
        with self.life():
            for kind, key, value in self._traffic.next(4):
                self._send(kind, key, value, timestamp_ms=ahead_ms)
            self.wait_until_read()

    def wrong_clock(self) -> None:
        """A life whose own clock is most of an hour wrong, either way."""
        with self.life(WrongClock(self._rng.choice((-1, 1)) * CLOCK_SECONDS)):
            self.send(10)
            self.wait_until_read()

    def recreate_topic(self) -> None:
        """Delete a topic that was read to its end and create it again, while the updater runs or is stopped."""
        topic = self._topics[self._rng.choice(SHOPPER_KINDS)]
        with self.life():
            self.wait_until_read()
            running = self._rng.random() < 0.5
            if running:
                self._recreate(topic)
                self.send(10)
                self.wait_until_read()
        if not running:
            self._recreate(topic)
            self.send(10)

    def _recreate(self, topic: str) -> None:
        self._admin.delete_topics([topic])
        wait_until(lambda: topic not in self._admin.list_topics(), what="topic deleted")
        time.sleep(self._rng.uniform(0.0, 2.0))
        ensure_topics(self.shop.connection, self.shop.topics, partitions=self._rng.randint(1, 3))
        self._logs[topic] += 1
        self._renew_producer()

    def add_partition(self) -> None:
        """Add a partition to a topic while the updater runs."""
        topic = self._topics[self._rng.choice(SHOPPER_KINDS)]
        (described,) = self._admin.describe_topics([topic])
        count = len(described["partitions"]) + 1
        with self.life():
            if count <= MOST_PARTITIONS:
                self._admin.create_partitions({topic: NewPartitions(count)})
            self._renew_producer()
            self.send(20)
            self.wait_until_read()

    def delete_unread(self) -> None:
        """Delete records that were not read yet, as retention does."""
        with self.life():
            self.wait_until_read()
        unread = len(self._sent)
        self.send(20)
        topic = self._topics[self._rng.choice(SHOPPER_KINDS)]
        new = [sent for sent in self._sent[unread:] if sent.topic == topic]
        if not new:
            return
        last = self._rng.choice(new)
        gone = [sent for sent in new if sent.partition == last.partition and sent.offset <= last.offset]
        self._admin.delete_records({KafkaPartition(topic, last.partition): last.offset + 1})
        self._missed.update(gone)

    def fill_disk(self) -> None:
        """Fill the disk of the checkpoints under a running updater; it says so, and goes on once there is room."""
        with self.life() as updater:
            self.wait_until_read()
            self._disk.fill()
            self.send(10)
            wait_until(
                lambda: updater.has_ended() or "No space left" in updater.log() or "is full" in updater.log(),
                what="the full disk is named",
            )
            self._disk.make_room()
            with suppress(subprocess.TimeoutExpired):
                assert updater.ended(seconds=3) != 0
            if updater.has_ended():
                assert str(self._root.parent) in updater.log()
            else:
                self.wait_until_read()

    def _renew_producer(self) -> None:
        """A client that learns of new partitions at once, and whose sequence numbers belong to no deleted topic."""
        self._producer = None

    def _numbers(self) -> int:
        newest = newest_checkpoint(self._root)
        return len(checkpoint_numbers(newest.parent)) if newest else 0


def _event_id(value: bytes) -> str:
    return str(json.loads(value)["event_id"])


def _truncate(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size))


@contextmanager
def _closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()
