"""Checkpoints: a learner's whole state, and whatever else must go with it, in one directory, whole or not at all.

```
<root>/<number:010d>/model.safetensors    every tensor of the learner
<root>/<number:010d>/beside.safetensors   others that go with it; a hard link where they are those of one before
<root>/<number:010d>/state.json           everything else, the offsets it came from included
<root>/<number:010d>/...                  files that the owner of the root adds with `add_file`
<root>/<number:010d>/SHA256SUMS           of all of them, as `sha256sum --check` reads it
```

A checkpoint is written aside, synced, and renamed into place. Which one counts is for the owner of the root to say, in
the same stroke as whatever else has to stand at the same place; see `services.updater.checkpoint_store`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from peft_adapters.durable import durable_file, link_or_copy, path_in_errors, sync_directory, sync_file
from peft_adapters.earlier_names import checkpoint_tensors_of_today
from peft_adapters.errors import CheckpointError
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.modalities import pack_vectors, unpack_vectors
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.registry.bundle import SAME_ADAPTER

STATE_VERSION = 7
MODEL_NAME, STATE_NAME, SUMS_NAME = "model.safetensors", "state.json", "SHA256SUMS"
BESIDE_NAME = "beside.safetensors"


def save_checkpoint(
    root: Path,
    number: int,
    learner: Learner,
    extra: dict[str, Any],
    beside: Mapping[str, Tensor] | None = None,
    *,
    beside_of: int | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        root: directory of all checkpoints of one updater.
        number: of this one; what a run that was cut short left under it is replaced.
        learner: what is saved.
        extra: what else to keep, as JSON can hold it; `load_checkpoint` gives it back.
        beside: what else to keep, as tensors; `load_beside` gives it back.
        beside_of: a checkpoint in the same root that has the same `beside`: it is not written again.

    Raises:
        CheckpointError: the disk refused; older checkpoints still stand.
    """
    try:
        files = _files(learner, extra)
        if beside_of is not None:
            _write(root, number, files, linked=checkpoint_path(root, beside_of) / BESIDE_NAME)
        else:
            _write(root, number, files | {BESIDE_NAME: _saved(beside or {})})
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint_path(root, number)} cannot be written: {error}; the one before still stands, "
            "make room or give rights there"
        ) from error


def prune_checkpoints(root: Path, *, keep: Collection[int]) -> None:
    """Remove all checkpoints but those of the given numbers."""
    for number in checkpoint_numbers(root):
        if number not in keep:
            shutil.rmtree(checkpoint_path(root, number), ignore_errors=True)


def checkpoint_numbers(root: Path) -> list[int]:
    """Numbers of the checkpoints in a root, oldest first."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit() and path.is_dir())


def add_file(root: Path, number: int, name: str, make: Callable[[Path], None]) -> None:
    """Add a file to a checkpoint that is already in place. It counts once `SHA256SUMS` lists it.

    Args:
        root: directory of all checkpoints of one updater.
        number: of the checkpoint.
        name: of the file.
        make: writes the file at the path it is given.

    Raises:
        OSError: the disk refused; the checkpoint is as it was before.
    """
    path = checkpoint_path(root, number)
    aside = path / f".{name}"
    try:
        aside.unlink(missing_ok=True)
        make(aside)
        sync_file(aside)
        sums = _read_sums(path) | {name: _sha256(aside)}
        aside.replace(path / name)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    with durable_file(path / SUMS_NAME) as file:
        file.write(_sums(sums))
    sync_directory(path)


def has_file(root: Path, number: int, name: str) -> bool:
    """Whether a checkpoint lists an added file."""
    try:
        return name in _read_sums(checkpoint_path(root, number))
    except OSError:
        return False


def verify_checkpoint(root: Path, number: int) -> None:
    """Read all files of a checkpoint and compare them with their digests.

    Raises:
        CheckpointError: a file is missing or not the one that was written.
    """
    path = checkpoint_path(root, number)
    try:
        sums = _read_sums(path)
        missing = sorted({MODEL_NAME, STATE_NAME, BESIDE_NAME} - sums.keys())
        damaged = missing or [name for name, digest in sums.items() if _sha256(path / name) != digest]
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: {damaged[0]} is not the file that {SUMS_NAME} names")


def _sha256(path: Path) -> str:
    with path_in_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(root: Path, number: int, files: dict[str, bytes], *, linked: Path | None = None) -> None:
    """1. Write the files aside, and link the one that is there already. 2. Rename their directory into place."""
    aside = root / f".{number:010d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if linked is not None:
        link_or_copy(linked, aside / linked.name)
        sums[linked.name] = _read_sums(linked.parent)[linked.name]
    for name, data in (files | {SUMS_NAME: _sums(sums)}).items():
        with durable_file(aside / name) as file:
            file.write(data)
    sync_directory(aside)
    shutil.rmtree(checkpoint_path(root, number), ignore_errors=True)
    aside.rename(checkpoint_path(root, number))
    sync_directory(root)


def _files(learner: Learner, extra: dict[str, Any]) -> dict[str, bytes]:
    tensors, state = learner_state(learner)
    told = json.dumps({"version": STATE_VERSION, "learner": state, "extra": extra})
    return {MODEL_NAME: _saved(tensors), STATE_NAME: told.encode()}


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    # Clones: of tensors that share memory safetensors takes none.
    data: bytes = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    return data


def load_checkpoint(root: Path, number: int, learner: Learner) -> dict[str, Any]:
    """Put a checkpoint into a fresh learner; what was saved beside it.

    Raises:
        CheckpointError: it cannot be read, or belongs to another encoder or release.
    """
    path = checkpoint_path(root, number)
    try:
        files = {name: (path / name).read_bytes() for name in (MODEL_NAME, STATE_NAME, BESIDE_NAME)}
        state = _checked_state(path, files)
        tensors = checkpoint_tensors_of_today(safetensors.torch.load(files[MODEL_NAME]))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}; put it back from a copy, or start in an empty directory"
        ) from error
    try:
        restore_learner(learner, tensors, state["learner"])
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {path} has no {error}; go on with the `learner` settings it was made with, "
            "or start in an empty directory"
        ) from error
    extra: dict[str, Any] = state["extra"]
    return extra


def load_beside(root: Path, number: int) -> dict[str, Tensor]:
    """The tensors that were saved beside a learner, of a checkpoint that `load_checkpoint` has taken."""
    tensors = safetensors.torch.load((checkpoint_path(root, number) / BESIDE_NAME).read_bytes())
    return checkpoint_tensors_of_today(tensors)


def _checked_state(path: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What `state.json` says, once all files are known to be those that were written."""
    sums = _read_sums(path)
    if any(sums.get(name) != hashlib.sha256(data).hexdigest() for name, data in files.items()):
        raise ValueError(f"its files are not those that {SUMS_NAME} names")
    state: dict[str, Any] = json.loads(files[STATE_NAME])
    if state["version"] != STATE_VERSION:
        raise CheckpointError(
            f"checkpoint {path} is of version {state['version']}, this release reads {STATE_VERSION}; "
            "go on with the release that wrote it, or start in an empty directory"
        )
    return state


def _sums(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


def _read_sums(path: Path) -> dict[str, str]:
    lines = (path / SUMS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def learner_weights(learner: Learner) -> dict[str, Tensor]:
    """Everything that learning moves, and the state of what moves it; counters are not learnt."""
    ranker = learner.ranker
    tensors = {"heads": ranker.heads, "catalogue_heads": learner.catalogue_heads, "text": ranker.text}
    tensors |= {"likelihood_heads": learner.lora_steps.heads}
    tensors |= {
        "global_preference": ranker.global_preference,
        "catalogue_global_preference": learner.catalogue_global_preference,
    }
    tensors |= {f"residuals.{role}": ranker.residuals[role] for role in ROLES}
    parts = {
        "heads_optimiser": learner.heads_optimiser.state_dict(),
        "lora_optimiser": learner.lora_steps.optimiser.state_dict(),
    }
    parts |= {"global_preference_optimiser": learner.global_preference_optimiser.state_dict()}
    parts |= {"likelihood_optimiser": learner.lora_steps.heads_optimiser.state_dict()}
    parts |= {f"rows.{role}": optimiser.state_dict() for role, optimiser in learner.row_optimisers.items()}
    parts |= {"lora": learner.encoder.lora_state(), "served_lora": learner.lora_steps.served}
    parts |= {"lists": learner.lists.state_dict()[0], "projections": learner.projections.state_dict()}
    return tensors | {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def restore_weights(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Put back what `learner_weights` gave; the learner takes text and residuals over as they are.

    Raises:
        KeyError: it lacks something that this learner has.
    """
    learner.ranker.heads = tensors["heads"].clone()
    learner.catalogue_heads.copy_(tensors["catalogue_heads"])  # in place: the optimiser holds this tensor
    learner.lists.load_state_dict(_part(tensors, "lists"), learner.lists.state_dict()[1])
    learner.projections.load_state_dict(_part(tensors, "projections"))
    learner.ranker.text = tensors["text"]
    learner.ranker.residuals = {role: tensors[f"residuals.{role}"] for role in ROLES}
    learner.heads_optimiser.load_state_dict(_part(tensors, "heads_optimiser"))
    learner.ranker.global_preference = tensors["global_preference"].clone()
    learner.catalogue_global_preference.copy_(tensors["catalogue_global_preference"])
    learner.lora_steps.heads.copy_(tensors["likelihood_heads"])
    learner.lora_steps.heads_optimiser.load_state_dict(_part(tensors, "likelihood_optimiser"))
    learner.global_preference_optimiser.load_state_dict(_part(tensors, "global_preference_optimiser"))
    for role, optimiser in learner.row_optimisers.items():
        optimiser.load_state_dict(_part(tensors, f"rows.{role}"))
    learner.lora_steps.load_lora(_part(tensors, "lora"), _part(tensors, "served_lora"))
    learner.lora_steps.optimiser.load_state_dict(_part(tensors, "lora_optimiser"))


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything a learner is, as tensors and as JSON can hold it."""
    parts = {
        "counters": learner.ranker.counters.state_dict(),
        "other_vectors": pack_vectors(learner.catalogue.modality_vectors),
        "plain": learner.projections.text_state_dict(),
        "lora_replay": learner.lora_steps.replay.state_dict(),
        "lora_ahead": _ahead(learner),
    }
    others = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return learner_weights(learner) | others, {
        "base_digest": learner.encoder.base_digest,
        "adapter": _adapter(learner),
        "items": list(zip(learner.catalogue.ids, learner.catalogue.texts, strict=True)),
        "shoppers": learner.shoppers.state_dict(),
        "lists": learner.lists.state_dict()[1],
        "batches_learned": learner.batches_learned,
        "events_learned": learner.events_learned,
    }


def restore_learner(learner: Learner, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put into a fresh learner what `learner_state` gave.

    Raises:
        CheckpointError: it belongs to another encoder, or another shape of adapter.
        KeyError: it lacks something that this learner has.
    """
    if state["base_digest"] != learner.encoder.base_digest:
        raise CheckpointError(
            f"the checkpoint was made with encoder {state['base_digest'][:12]}, this one is "
            f"{learner.encoder.base_digest[:12]}; use the `encoder` settings it was made with, or an empty directory"
        )
    if state["adapter"] != _adapter(learner):
        raise CheckpointError(
            f"the checkpoint was made with the adapter {state['adapter']}, this one is {_adapter(learner)}; "
            "use the `encoder.lora_*` settings it was made with, or an empty directory"
        )
    vectors = unpack_vectors(_part(tensors, "other_vectors"))
    learner.catalogue.upsert(
        (item_id, text, vectors.get(row, {})) for row, (item_id, text) in enumerate(state["items"])
    )
    learner.ranker.grow(len(learner.catalogue))
    restore_weights(learner, tensors)
    learner.projections.load_text_state_dict(_part(tensors, "plain"))
    learner.lists.load_state_dict(_part(tensors, "lists"), state["lists"])
    learner.ranker.counters.load_state_dict(_part(tensors, "counters"))
    learner.lora_steps.replay.load_state_dict(_part(tensors, "lora_replay"))
    ahead = _part(tensors, "lora_ahead")
    learner.lora_steps.restore_ahead(_part(ahead, "lora"), ahead.get("vectors", torch.empty(0)))
    learner.shoppers.load_state_dict(state["shoppers"])
    learner.batches_learned, learner.events_learned = state["batches_learned"], state["events_learned"]


def _ahead(learner: Learner) -> dict[str, Tensor]:
    """The LoRA that is to be served next, and its vectors as far as they are made."""
    ahead = learner.lora_steps.ahead
    if ahead is None:
        return {}
    lora = {f"lora/{name}": value for name, value in ahead.lora.items()}
    return lora | {"vectors": ahead.vectors[: len(ahead.texts)]}


def _adapter(learner: Learner) -> dict[str, Any]:
    config = learner.encoder.adapter_config()
    return {key: config[key] for key in SAME_ADAPTER}


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def checkpoint_path(root: Path, number: int) -> Path:
    """The directory of a checkpoint."""
    return root / f"{number:010d}"
