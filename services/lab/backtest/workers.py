"""Processes that carry out the runs of a backtest in parallel, and the display of their progress."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from queue import Empty
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.backtest.policies import Policy
from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.run import Start, run_policy

_LINE_SECONDS = 15.0

console = Console(stderr=True)


class Run(NamedTuple):
    """A policy with a seed."""

    policy: Policy
    seed: int

    def __str__(self) -> str:
        """Return the name of the run in the progress display."""
        return f"{self.policy.name} seed {self.seed}"


class Job(NamedTuple):
    """The inputs that all runs share."""

    data: Data
    encoder: EncoderSettings
    learner: LearnerSettings
    start: Start | None


_queue: Any = None  # of (run, events done); set in each worker
_job: Job  # set in each worker


def run_all(job: Job, runs: Sequence[Run]) -> dict[Run, Outcome]:
    """Return the outcome of every run, in the order of `runs`; progress is shown meanwhile."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    cores = os.cpu_count() or 1
    workers = min(len(runs), cores)
    initargs = (queue, job, cores // workers)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=initargs) as pool:
        futures = {run: pool.submit(_carry_out, run) for run in runs}
        _show_progress(futures, queue, len(job.data.stream.examples))
        return {run: future.result() for run, future in futures.items()}


def _start_worker(queue: Any, job: Job, threads: int) -> None:
    global _queue, _job
    _queue, _job = queue, job
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End the process with its parent: a pool's worker would finish its task even if nobody takes the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _carry_out(run: Run) -> Outcome:
    report: Callable[[int], None] = lambda events: _queue.put((run, events))  # noqa: E731
    return run_policy(
        run.policy,
        _job.data,
        encoder=_job.encoder,
        learner=_job.learner.model_copy(update={"seed": run.seed}),
        start=_job.start,
        progress=report,
    )


def _show_progress(futures: dict[Run, Future[Outcome]], queue: Any, events: int) -> None:
    """Show the progress of each run: bars on a terminal, a line every 15 s elsewhere."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    next_line = time.monotonic() + _LINE_SECONDS
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {run: progress.add_task(str(run), total=events) for run in futures}
        while wait(futures.values(), timeout=0).not_done:
            with suppress(Empty):
                run, done = queue.get(timeout=0.5)
                progress.update(tasks[run], advance=done)
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + _LINE_SECONDS
                if lines := [_progress_text(task) for task in progress.tasks if 0 < task.completed < events]:
                    console.print(", ".join(lines))


def _progress_text(task: Task) -> str:
    return f"{task.description}: {task.percentage:.0f} %"
