"""Scenario `soak`: memory, descriptors, temporary files and accounts over an hour of steady traffic on Apache Kafka.

It starts registry, updater and one scorer on that Kafka (with topics of its own, deleted at the end), publishes events
and sends rankings at fixed rates, and samples each process every half minute. The events of the bundled sample are
published again and again, with new ids and the present time. Growth is the median of the last five minutes over the
median of the five minutes after minute 20, so that one sample taken during a swap does not decide it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import Measurement
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.driver import Server
from services.lab.bench.publisher import EventPublisher
from services.lab.bench.rank import RANK
from services.lab.bench.requests import rank_bodies, requests_before
from services.lab.demo.command import read_sample
from services.lab.demo.deployment import demo_deployment
from services.lab.demo.processes import Child
from services.logs import configure_logging
from services.metrics.intake import EVENT_OUTCOMES
from services.settings import load_settings
from streams.consumer import PartitionConsumer

SAMPLE_SECONDS = 30.0
WARM_MINUTES, WINDOW_MINUTES = 20, 5
MOST_GROWTH = 0.01
DRAIN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of one process.

    Attributes:
        minute: the minutes since the load began.
        process: the name of the process.
        resident_bytes: the resident memory, shared pages included.
        descriptors: the number of open files and sockets.
        temporary_files: the number of files in the temporary directory of all processes.
    """

    minute: float
    process: str
    resident_bytes: int
    descriptors: int
    temporary_files: int


def sample(child: Child, minute: float, temporary: Path) -> Sample:
    """Return a sample of a process, from /proc."""
    process = Path("/proc") / str(child.pid)
    pages = int((process / "statm").read_text().split()[1])
    files = sum(len(names) for _, _, names in os.walk(temporary))
    return Sample(minute, child.name, pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir())), files)


def growth(samples: list[Sample], process: str, figure: str, minutes: float) -> float | None:
    """Return the relative growth of a figure after the warm-up, or None if the run was too short."""
    warm = WARM_MINUTES if minutes >= WARM_MINUTES + 2 * WINDOW_MINUTES else minutes / 3
    window = min(WINDOW_MINUTES, (minutes - warm) / 2)
    values = [(each.minute, getattr(each, figure)) for each in samples if each.process == process]
    first = [value for minute, value in values if warm <= minute < warm + window]
    last = [value for minute, value in values if minute >= minutes - window]
    return median(last) / max(1, median(first)) - 1 if first and last else None


def account(page: str, ends: dict[str, int]) -> dict[str, Any]:
    """Compare the updater's counts with the records in the log, by topic."""
    counted: dict[str, dict[str, int]] = {}
    for family in text_string_to_metric_families(page):
        for name, labels, value, *_ in family.samples:
            if name == "headwater_events_total":
                counted.setdefault(labels["topic"], {})[labels["outcome"]] = int(value)
            elif name == "headwater_events_pending":
                counted.setdefault(labels["topic"], {})["pending"] = int(value)
    exact = all(
        counted[topic]["in"] == end
        and counted[topic]["in"] == sum(counted[topic][name] for name in (*EVENT_OUTCOMES[1:], "pending"))
        for topic, end in ends.items()
    )
    return {"exact": exact, "in_the_log": ends, "counted": {topic: counted[topic] for topic in ends}}


def run(
    _data: Path,
    *,
    bootstrap_servers: str,
    minutes: float = 60.0,
    events_per_second: float = 100.0,
    requests_per_second: float = 20.0,
) -> Measurement:
    """Run the load, and check growth, failed requests and the account of events.

    Args:
        bootstrap_servers: the Apache Kafka to use.
        minutes: the length of the load.
        events_per_second: the events published.
        requests_per_second: the rankings requested.
    """
    configure_logging(level="warning")
    before = os.environ.get("TMPDIR")
    try:
        soak = measure(
            bootstrap_servers,
            minutes=minutes,
            events_per_second=events_per_second,
            requests_per_second=requests_per_second,
        )
    finally:
        os.environ.pop("TMPDIR", None)
        if before is not None:
            os.environ["TMPDIR"] = before
    return Measurement(
        unit="1 if memory, descriptors and files stay, no request fails and every event is accounted for",
        value=float(soak.holds),
        target=1.0,
        settings={
            "minutes": minutes,
            "events_per_second": events_per_second,
            "requests_per_second": requests_per_second,
            "most_growth": MOST_GROWTH,
            "samples": [asdict(each) for each in soak.samples],
            "accounts": soak.accounts,
            "first_failure": soak.first_failure,
        },
        rounds=[soak.figures()],
    )


@dataclass(frozen=True, slots=True)
class Soak:
    """The outcome of a load.

    Attributes:
        published: the events published.
        answered: the rankings answered.
        failed: the rankings that failed.
        first_failure: the text of the first failure.
        accounts: the account of every topic, see `account`.
        growth: the relative growth of each figure after the warm-up, by `<process>_<figure>`.
        samples: all samples of all processes.
    """

    published: int
    answered: int
    failed: int
    first_failure: str
    accounts: dict[str, Any]
    growth: dict[str, float | None]
    samples: list[Sample]

    def figures(self) -> dict[str, float | None]:
        """Return the figures of the load."""
        return {
            "published": self.published,
            "answered": self.answered,
            "failed": self.failed,
            "account_exact": float(self.accounts["exact"]),
            **{f"{name}_growth": value for name, value in self.growth.items()},
        }

    @property
    def holds(self) -> bool:
        """Return whether every target is met."""
        memory = [value for name, value in self.growth.items() if name.endswith("resident_bytes")]
        counts = [value for name, value in self.growth.items() if not name.endswith("resident_bytes")]
        return (
            self.failed == 0
            and bool(self.accounts["exact"])
            and all(value is not None and value < MOST_GROWTH for value in memory)
            and all(value is not None and value <= 0 for value in counts)
        )


def measure(bootstrap_servers: str, *, minutes: float, events_per_second: float, requests_per_second: float) -> Soak:
    """Run the load and return its outcome. It sets TMPDIR for the processes that it starts."""
    items, purchases = read_sample(None)
    events = list(purchases)
    with TemporaryDirectory(prefix="headwater-soak-") as name:
        directory = Path(name)
        os.environ["TMPDIR"] = str(directory / "tmp")
        for part in ("tmp", "work"):
            (directory / part).mkdir()
        settings = load_settings(kafka={"bootstrap_servers": bootstrap_servers})
        with demo_deployment(settings, directory / "work", items, _log, scorers=1) as up:
            deployment = BenchDeployment(
                Server(up.scorer_urls[0]), up.settings, str(up.registry_dir), items=items, past=events, coming=events
            )
            bodies = rank_bodies(requests_before(events, newest=2_000), items)
            samples: list[Sample] = []
            stop = threading.Event()
            began = time.monotonic()
            with (
                deployment.server.load(RANK, bodies, seconds=60 * minutes, per_second=requests_per_second) as load,
                EventPublisher(deployment, events, per_second=events_per_second) as publishing,
            ):
                while (minute := (time.monotonic() - began) / 60) < minutes and not stop.wait(SAMPLE_SECONDS):
                    up.check()
                    samples += [sample(child, round(minute, 2), directory / "tmp") for child in up.children]
                    _log(f"minute {minute:.1f}: " + ", ".join(_short(each) for each in samples[-len(up.children) :]))
                answers = load.result()
            accounts = _accounts(up.settings, up.metrics_url)
    return Soak(
        published=publishing.published,
        answered=answers.answered,
        failed=answers.failed,
        first_failure=answers.first_failure,
        accounts=accounts,
        growth={
            f"{process}_{figure}": growth(samples, process, figure, minutes)
            for process in ("updater", "scorer-1")
            for figure in ("resident_bytes", "descriptors", "temporary_files")
        },
        samples=samples,
    )


def _accounts(settings: Any, metrics_url: str) -> dict[str, Any]:
    """Wait until the updater has read everything, and return the account."""
    topics = settings.topics
    consumer = PartitionConsumer(settings.kafka, [topics.impressions, topics.clicks, topics.purchases, topics.items])
    try:
        ends: dict[str, int] = {}
        for (topic, _), end in consumer.end_offsets().items():
            ends[topic] = ends.get(topic, 0) + end
    finally:
        consumer.close()
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        accounts = account(httpx.get(metrics_url, timeout=10, trust_env=False).text, ends)
        if accounts["exact"] or time.monotonic() > deadline:
            return accounts
        time.sleep(1)


def _short(each: Sample) -> str:
    return f"{each.process} {each.resident_bytes / 2**20:.0f} MiB {each.descriptors} fd"


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")
