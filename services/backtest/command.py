"""`headwater backtest`: policies and seeds side by side, figures with intervals, ranks for anyone to recompute."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table

from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.backtest.judging import Ranks, figures, interval
from services.backtest.policies import POLICIES, policy_settings
from services.backtest.run import new_learner, read_catalogue, read_warm_up, run_policy
from services.backtest.stream import Stream, read_stream
from services.settings import Settings, SettingsError
from streams.joiner import Example

DEFAULT_BATCH_EVENTS = 128
_LINE_SECONDS = 15.0

Run = tuple[str, int]  # policy, seed
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class _Data:
    items: list[tuple[str, str]]
    warm_up: list[Example]
    stream: Stream
    batch_events: int


def run(
    settings: Settings,
    *,
    items: Path,
    events: Path,
    policies: Sequence[str],
    max_events: int | None,
    seeds: int,
    json_path: Path | None,
    ranks_path: Path | None,
    warm_up: Path | None,
    batch_events: int | None,
    click_window_seconds: float,
) -> dict[str, Any]:
    """Run every policy with every seed, print a table, write what was asked for; the report.

    Raises:
        SettingsError: a policy is not known.
        DatasetError: the data cannot be read.
    """
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown:
        raise SettingsError(f"`--policies` must be among {', '.join(POLICIES)}, got {', '.join(unknown)}")
    catalogue = read_catalogue(items)
    known = {item_id for item_id, _ in catalogue}
    stream = read_stream(events, known, max_events=max_events, click_window_seconds=click_window_seconds)
    earlier = read_warm_up(warm_up, known, stream.examples[0].ts) if warm_up else []
    data = _Data(catalogue, earlier, stream, batch_events or DEFAULT_BATCH_EVENTS)
    events_read = f"{len(stream.examples):,} events and {len(stream.lists):,} lists of {len(catalogue):,} items"
    console.print(f"{events_read}; encoding what is new to the cache")
    new_learner(settings.encoder, settings.learner).add_items(data.items)  # fills the cache once, for all runs
    results = _run_all(settings, data, [(policy, seed) for seed in range(seeds) for policy in policies])
    report = _report(settings, items, events, data, policies, seeds, results)
    console.print(_table(report))
    if json_path:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    if ranks_path:
        _write_ranks(ranks_path, results)
    return report


# ---- runs side by side, one a core

_queue: Any = None  # of (policy, seed, events done), set in each worker


def _run_all(settings: Settings, data: _Data, runs: Sequence[Run]) -> dict[Run, Ranks]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = min(len(runs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(queue,)) as pool:
        futures = {
            run: pool.submit(_one, run, settings.encoder, policy_settings(settings.learner, *run), data) for run in runs
        }
        _follow(futures, queue, len(data.stream.examples))
        return {run: future.result() for run, future in futures.items()}


def _start_worker(queue: Any) -> None:
    global _queue
    _queue = queue
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker finishes its task even when nobody is left to take the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _one(run: Run, encoder: EncoderSettings, learner: LearnerSettings, data: _Data) -> Ranks:
    report: Callable[[int], None] = lambda events: _queue.put((run, events))  # noqa: E731
    return run_policy(
        encoder=encoder,
        learner=learner,
        items=data.items,
        warm_up=data.warm_up,
        stream=data.stream,
        batch_events=data.batch_events,
        progress=report,
    )


def _follow(futures: dict[Run, Future[Ranks]], queue: Any, events: int) -> None:
    """Show how far each run is: bars on a terminal, a line now and then elsewhere."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    next_line = time.monotonic() + _LINE_SECONDS
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {run: progress.add_task(f"{run[0]} seed {run[1]}", total=events) for run in futures}
        while wait(futures.values(), timeout=0).not_done:
            with suppress(Empty):
                run, done = queue.get(timeout=0.5)
                progress.update(tasks[run], advance=done)
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + _LINE_SECONDS
                console.print(", ".join(_so_far(task) for task in progress.tasks if 0 < task.completed < events))


def _so_far(task: Task) -> str:
    return f"{task.description}: {task.percentage:.0f} %"


# ---- what comes out


def _report(
    settings: Settings,
    items: Path,
    events: Path,
    data: _Data,
    policies: Sequence[str],
    seeds: int,
    results: dict[Run, Ranks],
) -> dict[str, Any]:
    by_policy = {}
    for policy in policies:
        per_seed = [figures(results[policy, seed]) for seed in range(seeds)]
        by_policy[policy] = {
            name: interval([values[name] for values in per_seed]) | {"seeds": [values[name] for values in per_seed]}
            for name in per_seed[0]
        }
    return {
        "items": items.name,
        "events": events.name,
        "judged_events": len(data.stream.examples),
        "shown_lists": len(data.stream.lists),
        "warm_up_events": len(data.warm_up),
        "catalogue": len(data.items),
        "batch_events": data.batch_events,
        "encoder": settings.encoder.model_dump(mode="json", exclude={"cache_dir", "cache_max_bytes"}),
        "learner": settings.learner.model_dump(mode="json"),
        "policies": by_policy,
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table(title=f"{report['events']}: {report['judged_events']:,} events, {report['catalogue']:,} items")
    table.add_column("policy", no_wrap=True)
    columns: tuple[str, ...] = ("hr20", "ndcg20", "mrr", "auc", "hr20_first_of_item", "auc_first_of_item")
    columns += ("ndcg10_lists",) if report["shown_lists"] else ("hr20_new_user",)
    for column in columns:
        table.add_column(column.replace("_", "\n", 1), justify="right")
    for policy, values in report["policies"].items():
        table.add_row(policy, *(_cell(values.get(column)) for column in columns))
    return table


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.4f}" + ("" if value["ci95"] is None else f"\n±{value['ci95']:.4f}")


def _write_ranks(path: Path, results: dict[Run, Ranks]) -> None:
    with gzip.open(path, "wt", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["event_index", "policy", "seed", "rank", "candidates", "is_first_event_of_item"])
        for (policy, seed), ranks in results.items():
            for index, (rank, first) in enumerate(zip(ranks.rank, ranks.first_of_item, strict=True)):
                writer.writerow([index, policy, seed, rank, ranks.candidates, int(first)])
