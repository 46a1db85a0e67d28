"""Scenario `learner-speed`: events per second of processor time of a learner, by part, on one core.

Everything that an updater does with a micro-batch between Kafka and the checkpoint: observe it, judge its first events,
evaluate them, compare them with the live adapter, learn and count. Batches are as large as a busy updater's. Reading
the catalogue is not timed: it is done once. With `--set lora_every=4`, LoRA learns with every fourth batch only, as in
an updater that lags.

Other processes disturb even processor time, since caches and memory are shared. So every round also times a fixed
piece of work, a matrix product and a pass over memory in the learner's own proportions; `reference_ms` tells how fast
the machine was, and `events_per_reference` compares runs on a machine that is not quiet.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from benchmarks.measure import Measurement, data_settings
from peft_adapters.settings import EncoderSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.updater.loop import JUDGED_EVENTS
from services.updater.quality_monitor import QualityMonitor
from streams.examples import Example

TARGET = 1_000.0
BATCH_EVENTS = 128
WARM_BATCHES = 4  # not timed: loops are compiled, and shoppers get histories
ROUNDS = 4
REFERENCE_REPEATS = 20


class Parts:
    """Processor time by part; a part that calls another one does not count the other's time.

    Attributes:
        seconds: processor seconds of each part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["other"]
        self._since = time.process_time()

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Account the calls of a method to a part."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **keywords: Any) -> Any:
            with self._run(part):
                return function(*args, **keywords)

        setattr(owner, method, timed)

    def start(self) -> None:
        """Forget what was measured so far."""
        self.seconds.clear()
        self._since = time.process_time()

    def stop(self) -> dict[str, float]:
        """Return the processor seconds of each part since `start`."""
        self._account()
        return dict(self.seconds)

    @contextmanager
    def _run(self, part: str) -> Iterator[None]:
        self._account()
        self._running.append(part)
        try:
            yield
        finally:
            self._account()
            self._running.pop()

    def _account(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def run(data: Path, *, events: int = 20_000, lora_every: int = 1) -> Measurement:
    """Measure on the first `events` of `data`, each round on the next ones."""
    torch.set_num_threads(1)
    settings = Settings(encoder=EncoderSettings())
    items = read_catalogue(data / "items.csv.gz")
    examples = read_stream(
        data / "events.csv.gz", {item[0] for item in items}, max_events=events, click_window_seconds=30
    ).examples
    learner = new_learner(settings.encoder, settings.learner)
    learner.add_items(items)
    quality = QualityMonitor(learner, settings, UpdaterMetrics(CollectorRegistry()))
    parts = Parts()
    for owner, method, part in (
        (learner, "observe", "observe"),
        (learner, "first_of", "judge"),
        (learner, "judge", "judge"),
        (quality.prequential, "update", "evaluate"),
        (quality.gate, "update", "gate"),
        (quality.drift, "update", "drift"),
        (learner.positives, "step", "step"),
        (learner.lora_steps, "step_heads", "lora_heads"),
        (learner, "_judge_adapter", "lora_trial"),
        (learner.lora_steps, "step_if_due", "lora"),
        (learner.lora_steps, "advance_next_adapter", "next_adapter"),
        (learner.ranker.counters, "update", "count"),
    ):
        parts.watch(owner, method, part)

    def learn(batch_examples: Sequence[Example]) -> None:
        batch = learner.observe(batch_examples, whole=False)
        quality.judge(learner.first_of(batch, JUDGED_EVENTS))
        learner.learn(batch, lora=learner.batches_learned % lora_every == 0)

    batches = [examples[start : start + BATCH_EVENTS] for start in range(0, len(examples), BATCH_EVENTS)]
    for batch in batches[:WARM_BATCHES]:
        learn(batch)
    per_round = (len(batches) - WARM_BATCHES) // ROUNDS
    rounds = []
    for number in range(ROUNDS):
        first = WARM_BATCHES + number * per_round
        chosen = batches[first : first + per_round]
        reference_ms = _reference_ms()
        parts.start()
        for batch in chosen:
            learn(batch)
        seconds = parts.stop()
        rounds.append(_figures(sum(map(len, chosen)), len(chosen), seconds, (reference_ms + _reference_ms()) / 2))
    return Measurement(
        unit="events per second of processor time",
        value=median(round_["events_per_second"] for round_ in rounds),
        target=TARGET,
        settings={
            **data_settings(data),
            "events": len(examples),
            "items": len(items),
            "batch_events": BATCH_EVENTS,
            "lora_every": lora_every,
        },
        rounds=rounds,
    )


def _figures(events: int, batches: int, seconds: dict[str, float], reference_ms: float) -> dict[str, float]:
    total = sum(seconds.values())
    return {
        "events_per_second": events / total,
        "reference_ms": reference_ms,
        "events_per_reference": events / total * reference_ms / 1_000,
        "batch_ms": 1_000 * total / batches,
        **{f"{part}_ms": 1_000 * seconds[part] / batches for part in sorted(seconds)},
    }


def _reference_ms() -> float:
    """Return the processor milliseconds of a fixed piece of work, the median of some repeats."""
    left, right, wide = torch.ones(512, 384), torch.ones(384, 1_024), torch.ones(16, 128, 1_024)
    times = []
    for _ in range(REFERENCE_REPEATS):
        began = time.process_time()
        (left @ right).sum()
        (wide * wide).sum(dim=0)
        times.append(time.process_time() - began)
    return 1_000 * median(times)
