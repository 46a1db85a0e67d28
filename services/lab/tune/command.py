"""The command `headwater tune`: a seeded search (TPE, Bergstra et al. 2011) over the split of an offline fit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from peft_adapters.durable import durable_file
from peft_adapters.ranking.modalities import CatalogueItem
from services.data.rows import refused_rows
from services.lab.fit.data import Split, read_split, waiting_after
from services.lab.fit.passes import count, learn
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.judging import Ranks, figures
from services.outputs import require_writable_directories
from services.settings import Settings, SettingsError
from streams.privacy import pseudonymiser

if TYPE_CHECKING:
    from optuna import Study, Trial

STUDY_NAME, WINNER_NAME = "study.journal", "tuned.toml"

console = Console(stderr=True)


def run(
    settings: Settings, *, items: Path, events: Path, out: Path, trials: int, first_percent: float, strict: bool = False
) -> float:
    """Resume the study in `out` until it has `trials` trials, write the best settings, and return their NDCG@20.

    Args:
        settings: settings that the search starts from.
        items: file of the catalogue.
        events: file of the events.
        out: directory for the study and the best settings.
        trials: number of trials in all, earlier ones included.
        first_percent: percentage of the events to read, the oldest ones.
        strict: whether to stop at the first bad row instead of skipping it.

    Raises:
        SettingsError: optuna is not installed, or `out` cannot be written.
        InputError: the data cannot be read, or there are too few events.
    """
    if find_spec("optuna") is None:
        raise SettingsError("`tune` searches with Optuna, which is not installed; pip install 'headwater[tune]'")
    require_writable_directories({"--out": out})
    torch.set_num_threads(settings.updater.torch_threads)
    with refused_rows(strict=strict) as refused:
        catalogue = read_catalogue(items, refused=refused)
        known = {item[0] for item in catalogue}
        pseudonymise = pseudonymiser(settings.privacy)
        split = read_split(
            events, known, settings.fit, first_percent=first_percent, pseudonymise=pseudonymise, refused=refused
        )
    study = _study(out)
    while (done := _done(study)) < trials:
        _seed(study, settings.learner.seed + done)
        study.optimize(lambda trial: _value(settings, trial, catalogue, split), n_trials=1)
        console.print(f"trial {done + 1} of {trials}: {study.trials[-1].value:.4f}, best {study.best_value:.4f}")
        with durable_file(out / WINNER_NAME) as file:
            file.write(_toml(study.best_params).encode())
    console.print(f"best NDCG@20 on validation {study.best_value:.4f}: {out / WINNER_NAME}")
    return study.best_value


def _study(out: Path) -> Study:
    from optuna import create_study, logging
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    logging.set_verbosity(logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(out / STUDY_NAME)))
    return create_study(storage=storage, study_name="headwater", direction="maximize", load_if_exists=True)


def _done(study: Study) -> int:
    return sum(trial.value is not None for trial in study.trials)


def _seed(study: Study, seed: int) -> None:
    """Seed the sampler by the number of the trial, so that a resumed search draws what an uninterrupted one draws."""
    from optuna.samplers import TPESampler

    study.sampler = TPESampler(seed=seed)


def _value(settings: Settings, trial: Trial, catalogue: list[CatalogueItem], split: Split) -> float:
    """Return NDCG@20 on the validation events after learning the training events once, in order."""
    chosen = _sections({name: _suggested(trial, name) for name in _SPACE})
    learner = type(settings.learner).model_validate(settings.learner.model_dump() | chosen["learner"])
    size = int(chosen["fit"]["batch_events"])
    model = new_learner(settings.encoder, learner)
    model.add_items(catalogue)
    learn(model, split.train, batch_events=size, step=lambda _: None)
    ranks = Ranks()
    waiting = waiting_after(split.train)
    count(model, split.validation, batch_events=size, waiting=waiting, step=lambda _: None, ranks=ranks)
    return figures(ranks)["ndcg20"]


# By setting: the lowest and highest value on a logarithmic scale (integers stay integers), or a list of choices.
_SPACE: dict[str, tuple[float, float] | tuple[int, int] | list[Any]] = {
    "learner.heads_learning_rate": (0.01, 0.3),
    "learner.residual_learning_rate": (3e-4, 0.03),
    "learner.lora_optimiser": ["adamw", "sgd"],
    "learner.lora_learning_rate": (1e-4, 1e-2),  # of AdamW
    "learner.lora_warmup_steps": [0, 10, 50],
    "learner.lora_dropout": [0.0, 0.05, 0.1, 0.2],
    "learner.lora_accumulate": [1, 2, 4],
    "learner.lora_every_events": (32, 1_024),
    "learner.negatives": (256, 4_096),
    "fit.batch_events": (32, 512),
}
# SGD's rates over AdamW's: a clipped gradient has norm 1 in all, a step of AdamW about 1 in each weight.
_SGD_RATE = 300.0


def _suggested(trial: Trial, name: str) -> Any:
    space = _SPACE[name]
    if isinstance(space, list):
        return trial.suggest_categorical(name, space)
    low, high = space
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=True)
    return trial.suggest_float(name, low, high, log=True)


def _sections(chosen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in chosen.items():
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    if sections["learner"]["lora_optimiser"] == "sgd":
        sections["learner"]["lora_learning_rate"] *= _SGD_RATE
    return sections


def _toml(chosen: dict[str, Any]) -> str:
    """Return a settings file; the updater gets the micro-batch size of the fit."""
    sections = _sections(chosen)
    sections["updater"] = dict(sections["fit"])
    tables = (
        f"[{section}]\n" + "".join(f"{key} = {value!r}\n" for key, value in values.items())
        for section, values in sections.items()
    )
    return "\n".join(tables)
