"""Checkpoints: a learner's whole state, and whatever else must go with it, in one directory, whole or not at all.

```
<root>/<number:010d>/model.safetensors   every tensor
<root>/<number:010d>/state.json          everything else, the offsets it came from included
<root>/LATEST                            number of the newest
```

A checkpoint is written aside, synced, and renamed into place before LATEST advances, so that a kill at any instant
leaves the one before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from peft_adapters.durable import durable_file, sync_directory
from peft_adapters.errors import CheckpointError
from peft_adapters.learner import Learner
from peft_adapters.ranker import ROLES

STATE_VERSION = 1
KEPT_CHECKPOINTS = 2


def save_checkpoint(root: Path, learner: Learner, extra: dict[str, Any]) -> int:
    """Write the next checkpoint, prune old ones; its number.

    Args:
        root: directory of all checkpoints of one updater.
        learner: what is saved.
        extra: what else to keep, as JSON can hold it; `load_checkpoint` gives it back.

    Raises:
        OSError: the disk refused; the checkpoint before still stands.
    """
    root.mkdir(parents=True, exist_ok=True)
    number = (_latest(root) or 0) + 1
    aside = root / f".{number:010d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    tensors, state = learner_state(learner)
    with durable_file(aside / "model.safetensors") as file:
        file.write(safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()}))
    with durable_file(aside / "state.json") as file:
        file.write(json.dumps({"version": STATE_VERSION, "learner": state, "extra": extra}).encode())
    shutil.rmtree(_path(root, number), ignore_errors=True)  # from a run killed before LATEST advanced
    aside.rename(_path(root, number))
    sync_directory(root)
    with durable_file(root / "LATEST") as file:
        file.write(f"{number}\n".encode())
    for old in sorted(path for path in root.iterdir() if path.name.isdigit())[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)
    return number


def load_checkpoint(root: Path, learner: Learner) -> dict[str, Any] | None:
    """Put the newest checkpoint into a fresh learner; what was saved beside it, or None where there is no checkpoint.

    Raises:
        CheckpointError: it cannot be read, or belongs to another encoder or release.
    """
    number = _latest(root)
    if number is None:
        return None
    path = _path(root, number)
    try:
        state = json.loads((path / "state.json").read_bytes())
        tensors = safetensors.torch.load((path / "model.safetensors").read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}; put an older number into {root / 'LATEST'}"
        ) from error
    if state.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"checkpoint {path} is of version {state.get('version')}, this release reads {STATE_VERSION}; "
            "go on with the release that wrote it, or start in an empty directory"
        )
    restore_learner(learner, tensors, state["learner"])
    extra: dict[str, Any] = state["extra"]
    return extra


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything a learner is, as tensors and as JSON can hold it."""
    ranker = learner.ranker
    tensors = {"heads": ranker.heads, "text": ranker.text}
    tensors |= {f"residuals.{role}": ranker.residuals[role] for role in ROLES}
    parts = {"counters": ranker.counters.state(), "heads_optimiser": learner.heads_optimiser.state()}
    parts |= {f"rows.{role}": optimiser.state() for role, optimiser in learner.row_optimisers.items()}
    parts |= {"lora": learner.encoder.lora_state(), "lora_optimiser": learner.lora_optimiser.state()}
    tensors |= {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return tensors, {
        "base_digest": learner.encoder.base_digest,
        "items": list(zip(learner.catalogue.ids, learner.catalogue.texts, strict=True)),
        "shoppers": learner.shoppers.state(),
        "batches_learned": learner.batches_learned,
        "events_learned": learner.events_learned,
    }


def restore_learner(learner: Learner, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put into a fresh learner what `learner_state` gave.

    Raises:
        CheckpointError: it belongs to another encoder.
    """
    if state["base_digest"] != learner.encoder.base_digest:
        raise CheckpointError(
            f"the checkpoint was made with encoder {state['base_digest'][:12]}, this one is "
            f"{learner.encoder.base_digest[:12]}; use the `encoder` settings it was made with, or an empty directory"
        )
    learner.catalogue.upsert([(item_id, text) for item_id, text in state["items"]])
    learner.ranker.grow(len(learner.catalogue))
    learner.ranker.heads.copy_(tensors["heads"])  # in place: the optimiser holds this tensor
    learner.ranker.text = tensors["text"]
    learner.ranker.residuals = {role: tensors[f"residuals.{role}"] for role in ROLES}
    learner.ranker.counters.restore(_part(tensors, "counters"))
    learner.heads_optimiser.restore(_part(tensors, "heads_optimiser"))
    for role, optimiser in learner.row_optimisers.items():
        optimiser.restore(_part(tensors, f"rows.{role}"))
    learner.encoder.load_lora(_part(tensors, "lora"))
    learner.lora_optimiser.restore(_part(tensors, "lora_optimiser"))
    learner.shoppers.restore(state["shoppers"])
    learner.batches_learned, learner.events_learned = state["batches_learned"], state["events_learned"]


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _path(root: Path, number: int) -> Path:
    return root / f"{number:010d}"


def _latest(root: Path) -> int | None:
    try:
        return int((root / "LATEST").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{root / 'LATEST'} must hold a number: {error}; put the newest one there") from error
