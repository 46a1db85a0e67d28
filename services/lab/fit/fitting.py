"""A fit: epochs over the training events until validation stops improving, a test, and the warm start.

An epoch replays the training events in order through the learner. Counters and shoppers start empty in each epoch, so
that each event meets the contexts of its own time and is counted once; heads, residuals, LoRA and optimisers carry on
from epoch to epoch. After each epoch the model is judged on the validation events, with constant weights and running
counters, and saved as a checkpoint. The best checkpoint is tested the same way, and then learns validation and test
events once, in order, as an updater would have.

```
<out>/.fit/<epoch:010d>/   checkpoints of finished epochs; an interrupted run resumes from the newest
```
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from peft_adapters.durable import durable_file, sync_directory
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import checkpoint_numbers, load_checkpoint, prune_checkpoints, save_checkpoint
from peft_adapters.lifecycle.warm_start import write_warm_start
from services.lab.fit.data import Split, waiting_after
from services.lab.fit.passes import Progress, count, learn
from services.lab.offline.judging import Ranks, figures
from services.settings import SettingsError
from services.settings.fit import FitSettings

log = structlog.get_logger(__name__)

CHECKPOINTS_NAME, REPORT_NAME = ".fit", "fit.json"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """The inputs of a fit.

    Attributes:
        out: directory for the warm start.
        settings: settings of the fit.
        split: the data in three parts.
        new_model: makes a learner that has learnt nothing, with or without the catalogue's items.
        scenario: name of the ranking to fit.
        arguments: arguments that a resumed run must share with the first one, as JSON values.
        extra: values to save beside the learner.
        begin: called with the name and the number of events of each pass; returns the callback for its progress.
    """

    out: Path
    settings: FitSettings
    split: Split
    new_model: Callable[[bool], Learner]
    scenario: str
    arguments: Mapping[str, Any]
    extra: Mapping[str, Any]
    begin: Callable[[str, int], Progress]


def fit(task: Task) -> dict[str, Any]:
    """Fit, test and write the warm start, and return the report, which is saved as `fit.json` too.

    Raises:
        SettingsError: the directory has a fit with other arguments.
        CheckpointError: a checkpoint cannot be written or read.
    """
    epochs = _learn_epochs(task)
    best = _best(epochs)
    model = task.new_model(False)
    load_checkpoint(task.out / CHECKPOINTS_NAME, best["epoch"], model)
    test = _test(task, model)
    _go_live(task, model)
    split = task.split
    report = {
        **task.arguments,
        "events": {"train": len(split.train.examples), "validation": len(split.validation.examples)}
        | {"test": len(split.test.examples)},
        "items": len(model.catalogue),
        "epochs": epochs,
        "best_epoch": best["epoch"],
        "test": test,
    }
    watermark_ms = split.test.examples[-1].ts
    manifest = write_warm_start(
        task.out, model, scenario=task.scenario, watermark_ms=watermark_ms, metrics=test["after"], extra=task.extra
    )
    report |= {"bundle": manifest.digest, "events_learned": manifest.events_learned}
    with durable_file(task.out / REPORT_NAME) as file:
        file.write((json.dumps(report, indent=2) + "\n").encode())
    sync_directory(task.out)
    return report


# ---- epochs


def _learn_epochs(task: Task) -> list[dict[str, Any]]:
    """Learn epoch after epoch, starting from the newest checkpoint, and return the results of all epochs."""
    root = task.out / CHECKPOINTS_NAME
    root.mkdir(parents=True, exist_ok=True)
    done = max((int(path.name) for path in root.iterdir() if path.name.isdigit()), default=0)
    model = task.new_model(not done)
    epochs: list[dict[str, Any]] = []
    if done:
        resumed = load_checkpoint(root, done, model)
        _require_same(resumed["arguments"], task)
        epochs = resumed["epochs"]
        log.info("fit_resumed", epochs_done=done)
    while not _is_over(epochs, task.settings):
        epochs.append(_epoch(task, model, len(epochs) + 1))
        save_checkpoint(root, len(epochs), model, {"arguments": dict(task.arguments), "epochs": epochs})
        prune_checkpoints(root, keep=checkpoint_numbers(root)[-1 - task.settings.patience :])  # they include the best
    return epochs


def _is_over(epochs: list[dict[str, Any]], settings: FitSettings) -> bool:
    if not epochs:
        return False
    return len(epochs) >= settings.max_epochs or len(epochs) - int(_best(epochs)["epoch"]) >= settings.patience


def _best(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    return max(epochs, key=lambda epoch: epoch["validation"]["ndcg20"])  # the first of equals


def _epoch(task: Task, model: Learner, number: int) -> dict[str, Any]:
    started = time.monotonic()
    train, validation, settings = task.split.train, task.split.validation, task.settings
    model.reset_counts()
    step = task.begin(f"epoch {number}", len(train.examples) + len(validation.examples))
    loss = learn(model, train, batch_events=settings.batch_events, step=step)
    judged = _judged(task, model, validation, step, after=train)
    seconds = time.monotonic() - started
    log.info("epoch_done", epoch=number, loss=round(loss, 4), **_rounded(judged), seconds=round(seconds, 1))
    return {"epoch": number, "loss": loss, "validation": judged, "seconds": seconds}


def _require_same(first: Mapping[str, Any], task: Task) -> None:
    arguments = json.loads(json.dumps(dict(task.arguments)))
    for name in sorted(first.keys() | arguments.keys()):
        if first.get(name) != arguments.get(name):
            raise SettingsError(
                f"{task.out}: expected {name} as in the fit that was begun there, {first.get(name)}, got "
                f"{arguments.get(name)}; use the same arguments, or give another --out"
            )


# ---- after the last epoch


def _test(task: Task, model: Learner) -> dict[str, Figures]:
    """Return figures of the test events for a new model, for one that has only counted, and for the best one."""
    split, size = task.split, task.settings.batch_events
    untouched = task.new_model(True)
    step = task.begin("test before", len(split.test.examples))
    before = _judged(task, untouched, split.test, step)
    step = task.begin("test counted", split.events)
    count(untouched, split.train, batch_events=size, step=step)
    count(untouched, split.validation, batch_events=size, waiting=waiting_after(split.train), step=step)
    counted = _judged(task, untouched, split.test, step, after=split.validation)
    step = task.begin("test after", len(split.validation.examples) + len(split.test.examples))
    with model.counts_restored():
        count(model, split.validation, batch_events=size, waiting=waiting_after(split.train), step=step)
        after = _judged(task, model, split.test, step, after=split.validation)
    return {"before": before, "counted": counted, "after": after}


def _go_live(task: Task, model: Learner) -> None:
    split, size = task.split, task.settings.batch_events
    step = task.begin("going live", len(split.validation.examples) + len(split.test.examples))
    learn(model, split.validation, batch_events=size, waiting=waiting_after(split.train), step=step)
    learn(model, split.test, batch_events=size, waiting=waiting_after(split.validation), step=step)


def _judged(task: Task, model: Learner, stream: Any, step: Progress, *, after: Any = None) -> Figures:
    ranks = Ranks()
    waiting = waiting_after(after) if after is not None else ()
    with model.counts_restored():
        count(model, stream, batch_events=task.settings.batch_events, waiting=waiting, step=step, ranks=ranks)
    return figures(ranks)


def _rounded(values: Figures) -> Figures:
    return {name: round(values[name], 4) for name in ("auc", "ndcg20", "hr20") if name in values}
