"""Scenario `pending-impressions`: memory and checkpoint time with a million impressions waiting for their windows.

The value is 600 MB over the memory taken. A checkpoint here is the joiner's part of one: the commit of the changes
since the last, 20,000 impressions.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measure import Measurement
from streams.events import Impression, ShownItem
from streams.join_store import JoinStore
from streams.joiner import Joiner

IMPRESSIONS = 1_000_000
ITEMS_EACH = 24
CATALOGUE, USERS = 5_000, 100_000
BETWEEN_CHECKPOINTS = 20_000
LIMIT_MB = 600.0
MOST_CHECKPOINT_SECONDS = 2.0


def run(_data: Path) -> Measurement:
    """Fill a joiner in a process of its own, so that the memory measured is the joiner's."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fill, args=(sender,))
    process.start()
    figures: dict[str, float] = receiver.recv()
    process.join()
    if figures["slowest_checkpoint_seconds"] > MOST_CHECKPOINT_SECONDS:
        figures["ratio"] = 0.0  # slow checkpoints miss the target whatever the memory
    return Measurement(
        unit=f"times in {LIMIT_MB:.0f} MB, checkpoints under {MOST_CHECKPOINT_SECONDS:.0f} s",
        value=figures["ratio"],
        target=1.0,
        settings={"impressions": IMPRESSIONS, "items_each": ITEMS_EACH, "between_checkpoints": BETWEEN_CHECKPOINTS},
        rounds=[figures],
    )


def _fill(sender: Connection) -> None:
    rng = random.Random(0)  # noqa: S311
    lists = [
        tuple(ShownItem(item_id=f"item-{rng.randrange(CATALOGUE)}", position=place) for place in range(ITEMS_EACH))
        for _ in range(1_000)
    ]
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory:
        store = JoinStore(Path(directory) / "join.sqlite")
        joiner = Joiner(is_known=lambda _: True, store=store)
        began = time.perf_counter()
        for number in range(IMPRESSIONS):
            impression = Impression.model_construct(
                event_id=f"event-{number}",
                ts=number,
                user_id=f"user-{rng.randrange(USERS)}",
                session_id=None,
                request_id=f"request-{number}",
                scenario="home",
                items=lists[number % len(lists)],
            )
            joiner.offer(impression, publish_ts_ms=number)
            if number % BETWEEN_CHECKPOINTS == BETWEEN_CHECKPOINTS - 1:
                slowest = max(slowest, _checkpoint(joiner))
        seconds = time.perf_counter() - began
        resident_mb = _resident_mb()
        pending = joiner.counts()["pending"]
        store.close()
    if pending != IMPRESSIONS:
        raise RuntimeError(f"{pending} of {IMPRESSIONS} impressions wait")
    sender.send(
        {
            "ratio": LIMIT_MB / resident_mb,
            "resident_mb": resident_mb,
            "slowest_checkpoint_seconds": slowest,
            "impressions_per_second": IMPRESSIONS / seconds,
        }
    )


def _checkpoint(joiner: Joiner) -> float:
    began = time.perf_counter()
    joiner.state()
    joiner.store.commit(checkpoint="1")
    return time.perf_counter() - began


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096 / 1e6
