"""Memory, descriptors, temporary files and accounts of an updater and a scorer over an hour of steady traffic.

`python -m benchmarks.soak --bootstrap-servers HOST:PORT --minutes 60 --json OUT` starts registry, updater and one
scorer on that Kafka (topics of its own, removed at the end), publishes events and asks for rankings at fixed rates, and
samples each process every half minute. The events of the bundled sample come again and again under new ids and at the
present time. Growth is the median of the last five minutes over that of the five minutes after minute 20, so that one
sample taken during a swap does not decide it.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.provenance import code, machine
from services.lab.bench.deployment import BenchDeployment
from services.lab.bench.driver import Server
from services.lab.bench.pace import Publishing
from services.lab.bench.rank import RANK
from services.lab.bench.requests import asked, rank_bodies
from services.lab.demo.command import read_sample
from services.lab.demo.processes import Child
from services.lab.demo.stage import stage
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
    """One process at one moment.

    Attributes:
        minute: since the load began.
        process: its name.
        resident_bytes: memory of its own and shared.
        descriptors: open files and sockets.
        temporary_files: in the temporary directory of all processes.
    """

    minute: float
    process: str
    resident_bytes: int
    descriptors: int
    temporary_files: int


def sample(child: Child, minute: float, temporary: Path) -> Sample:
    """Read what the kernel says of a process."""
    process = Path("/proc") / str(child.pid)
    pages = int((process / "statm").read_text().split()[1])
    files = sum(len(names) for _, _, names in os.walk(temporary))
    return Sample(minute, child.name, pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir())), files)


def growth(samples: list[Sample], process: str, figure: str, minutes: float) -> float | None:
    """Return the relative growth of a figure after the warm-up, or None where the run was too short to tell."""
    warm = WARM_MINUTES if minutes >= WARM_MINUTES + 2 * WINDOW_MINUTES else minutes / 3
    window = min(WINDOW_MINUTES, (minutes - warm) / 2)
    own = [(each.minute, getattr(each, figure)) for each in samples if each.process == process]
    first = [value for minute, value in own if warm <= minute < warm + window]
    last = [value for minute, value in own if minute >= minutes - window]
    return median(last) / max(1, median(first)) - 1 if first and last else None


def account(page: str, ends: dict[str, int]) -> dict[str, Any]:
    """Compare what the updater counted with what is in the log, topic by topic."""
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


def measure(
    bootstrap_servers: str, *, minutes: float, events_per_second: float, asked_per_second: float
) -> dict[str, Any]:
    """Run the load and return all figures."""
    items, purchases = read_sample(None)
    events = list(purchases)
    with TemporaryDirectory(prefix="headwater-soak-") as name:
        directory = Path(name)
        os.environ["TMPDIR"] = str(directory / "tmp")
        for part in ("tmp", "work"):
            (directory / part).mkdir()
        settings = load_settings(kafka={"bootstrap_servers": bootstrap_servers})
        with stage(settings, directory / "work", items, _say, scorers=1) as up:
            deployment = BenchDeployment(
                Server(up.scorer_urls[0]), up.settings, str(up.registry_dir), items=items, past=events, coming=events
            )
            bodies = rank_bodies(asked(events, newest=2_000), items)
            samples: list[Sample] = []
            stop = threading.Event()
            began = time.monotonic()
            with (
                deployment.server.load(RANK, bodies, seconds=60 * minutes, per_second=asked_per_second) as load,
                Publishing(deployment, events, per_second=events_per_second) as publishing,
            ):
                while (minute := (time.monotonic() - began) / 60) < minutes and not stop.wait(SAMPLE_SECONDS):
                    up.check()
                    samples += [sample(child, round(minute, 2), directory / "tmp") for child in up.children]
                    _say(f"minute {minute:.1f}: " + ", ".join(_short(each) for each in samples[-len(up.children) :]))
                answers = load.result()
            accounts = _accounts(up.settings, up.metrics_url)
    figures = {
        f"{figure}_growth": {child: growth(samples, child, figure, minutes) for child in ("updater", "scorer-1")}
        for figure in ("resident_bytes", "descriptors", "temporary_files")
    }
    return {
        "minutes": minutes,
        "events_per_second": events_per_second,
        "requests_per_second": asked_per_second,
        "published": publishing.published,
        "answered": answers.answered,
        "failed": answers.failed,
        "first_failure": answers.first_failure,
        "accounts": accounts,
        **figures,
        "samples": [asdict(each) for each in samples],
        "machine": machine(),
        "code": code(),
    }


def _accounts(settings: Any, metrics_url: str) -> dict[str, Any]:
    """Wait until all is read, and compare."""
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


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def holds(figures: dict[str, Any]) -> bool:
    """Return whether every target is met."""
    grown = [value for name in ("resident_bytes_growth",) for value in figures[name].values()]
    steady = [value for name in ("descriptors_growth", "temporary_files_growth") for value in figures[name].values()]
    return (
        figures["failed"] == 0
        and figures["accounts"]["exact"]
        and all(value is not None and value < MOST_GROWTH for value in grown)
        and all(value is not None and value <= 0 for value in steady)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="events published a second")
    parser.add_argument("--asked", type=float, default=20.0, help="rankings asked for a second")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    configure_logging(level="warning")
    result = measure(
        options.bootstrap_servers,
        minutes=options.minutes,
        events_per_second=options.rate,
        asked_per_second=options.asked,
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    json.dump({name: value for name, value in result.items() if name != "samples"}, sys.stdout, indent=2)
    sys.exit(0 if holds(result) else 1)
