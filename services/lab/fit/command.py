"""The command `headwater fit`: fit a model offline, test it, and write a directory that an updater starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from peft_adapters.learning.learner import Learner
from services.data.digests import file_digest
from services.data.rows import refused_rows
from services.lab.fit.data import read_split
from services.lab.fit.fitting import Task, fit
from services.lab.fit.progress import PassProgress
from services.lab.offline.inputs import new_learner, read_catalogue
from services.outputs import require_writable_directories
from services.settings import Settings
from streams.privacy import pseudonymiser

console = Console(stderr=True)


def run(
    settings: Settings, *, items: Path, events: Path, out: Path, first_percent: float, strict: bool = False
) -> dict[str, Any]:
    """Fit, print a table, write the warm start into `out`, and return the report.

    Args:
        settings: settings of the encoder, the learner and the fit.
        items: file of the catalogue.
        events: file of the events.
        out: directory for the warm start.
        first_percent: percentage of the events to read, the oldest ones.
        strict: whether to stop at the first bad row instead of skipping it.

    Raises:
        SettingsError: `out` cannot be written.
        InputError: the data cannot be read, or there are too few events.
    """
    require_writable_directories({"--out": out})
    torch.set_num_threads(settings.updater.torch_threads)  # so that sums do not depend on the number of cores
    pseudonymise = pseudonymiser(settings.privacy)
    with refused_rows(strict=strict) as refused:
        catalogue = read_catalogue(items, refused=refused)
        known = {item[0] for item in catalogue}
        split = read_split(
            events, known, settings.fit, first_percent=first_percent, pseudonymise=pseudonymise, refused=refused
        )
    console.print(f"{split.events:,} events of {len(catalogue):,} items; encoding the texts that are not in the cache")

    def new_model(with_items: bool) -> Learner:
        model = new_learner(settings.encoder, settings.learner)
        if with_items:
            model.add_items(catalogue)
        return model

    with PassProgress(console) as progress:
        task = Task(
            out=out,
            settings=settings.fit,
            split=split,
            new_model=new_model,
            scenario=settings.scenario,
            arguments=_arguments(settings, items, events, first_percent),
            extra={"pseudonyms": pseudonymise.fingerprint()},
            begin=progress.begin,
        )
        report = fit(task)
    console.print(_table(report))
    console.print(f"warm start of {report['events_learned']:,} events in {out}; set `updater.start_from` to it")
    return report


def _arguments(settings: Settings, items: Path, events: Path, first_percent: float) -> dict[str, Any]:
    """Return everything that the result depends on."""
    return {
        "data": {path.name: file_digest(path) for path in (items, events)},
        "first_percent": first_percent,
        "fit": settings.fit.model_dump(mode="json"),
        "encoder": settings.encoder.model_dump(mode="json", exclude={"cache_dir", "cache_max_bytes"}),
        "learner": settings.learner.model_dump(mode="json"),
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table(title=f"test: {report['events']['test']:,} events, best epoch {report['best_epoch']}")
    table.add_column("", no_wrap=True)
    for name in ("AUC", "NDCG@20", "HR@20"):
        table.add_column(name, justify="right")
    meanings = {"before": "before", "counted": "events counted, nothing learnt", "after": "after"}
    for row, meaning in meanings.items():
        values = report["test"][row]
        table.add_row(
            meaning, *(f"{values[name]:.4f}" if name in values else "-" for name in ("auc", "ndcg20", "hr20"))
        )
    return table
