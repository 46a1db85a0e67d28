"""Checkpoints: a learner's whole state and what belongs to it, in one directory that is written atomically.

```
<root>/<number:010d>/model.safetensors    every tensor of the learner
<root>/<number:010d>/beside.safetensors   tensors of the caller; a hard link if an earlier checkpoint has them
<root>/<number:010d>/state.json           everything else, including the offsets that were learnt
<root>/<number:010d>/...                  files that the owner of the root adds with `add_file`
<root>/<number:010d>/SHA256SUMS           digests of all of them, as `sha256sum --check` reads them
```

A checkpoint is written to a hidden directory, synced, and renamed into place. The owner of the root decides which
checkpoint counts, in one commit with the state that must match it; see `services.updater.checkpoint_store`.

Checkpoints of version 7 (release 0.1) are read: `peft_adapters.earlier_formats` translates their names.
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
from torch import Tensor

from peft_adapters.durable import durable_file, link_or_copy, path_in_errors, sync_directory, sync_file
from peft_adapters.earlier_formats import VERSION_OF_0_1, gate_of_0_1, learner_of_0_1, model_of_0_1
from peft_adapters.errors import CheckpointError
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.state_dicts import StateDict, join_tensors, split_tensors
from peft_adapters.registry.bundle import SAME_ADAPTER

STATE_VERSION = 8
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
        number: number of this checkpoint; an incomplete one of that number is replaced.
        learner: the learner to save.
        extra: further state of the caller, as JSON can hold it; `load_checkpoint` returns it.
        beside: further tensors of the caller; `load_beside` returns them.
        beside_of: number of a checkpoint in the same root with the same `beside`, whose file is linked.

    Raises:
        CheckpointError: the disk refused; older checkpoints are intact.
    """
    try:
        files = _files(learner, extra)
        if beside_of is not None:
            _write(root, number, files, linked=checkpoint_path(root, beside_of) / BESIDE_NAME)
        else:
            _write(root, number, files | {BESIDE_NAME: _tensor_bytes(beside or {})})
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint_path(root, number)} cannot be written: {error}; the one before still stands, "
            "make room or give rights there"
        ) from error


def prune_checkpoints(root: Path, *, keep: Collection[int]) -> None:
    """Delete all checkpoints except those of the given numbers."""
    for number in checkpoint_numbers(root):
        if number not in keep:
            shutil.rmtree(checkpoint_path(root, number), ignore_errors=True)


def checkpoint_numbers(root: Path) -> list[int]:
    """Return the numbers of the checkpoints in a root, oldest first."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit() and path.is_dir())


def add_file(root: Path, number: int, name: str, make: Callable[[Path], None]) -> None:
    """Add a file to a checkpoint that is already in place. It counts once `SHA256SUMS` lists it.

    Args:
        root: directory of all checkpoints of one updater.
        number: number of the checkpoint.
        name: name of the file.
        make: function that writes the file at a given path.

    Raises:
        OSError: the disk refused; the checkpoint is unchanged.
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
    """Return whether a checkpoint lists an added file."""
    try:
        return name in _read_sums(checkpoint_path(root, number))
    except OSError:
        return False


def verify_checkpoint(root: Path, number: int) -> None:
    """Compare all files of a checkpoint with their digests.

    Raises:
        CheckpointError: a file is missing or damaged.
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
    """Write the files to a hidden directory, link the one that exists already, and rename the directory into place."""
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
    text = json.dumps({"version": STATE_VERSION, "learner": state, "extra": extra})
    return {MODEL_NAME: _tensor_bytes(tensors), STATE_NAME: text.encode()}


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Clones, because safetensors refuses tensors that share memory.
    data: bytes = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    return data


def load_checkpoint(root: Path, number: int, learner: Learner) -> dict[str, Any]:
    """Load a checkpoint into a fresh learner, and return the caller's `extra`.

    Raises:
        CheckpointError: it cannot be read, or belongs to another encoder or release.
    """
    path = checkpoint_path(root, number)
    try:
        files = {name: (path / name).read_bytes() for name in (MODEL_NAME, STATE_NAME, BESIDE_NAME)}
        state = _verified_state(path, files)
        tensors = safetensors.torch.load(files[MODEL_NAME])
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}; put it back from a copy, or start in an empty directory"
        ) from error
    try:
        if state["version"] == VERSION_OF_0_1:
            tensors, state["learner"] = model_of_0_1(tensors), learner_of_0_1(state["learner"])
        restore_learner(learner, tensors, state["learner"])
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {path} has no {error}; use the `learner` settings it was made with, "
            "or start in an empty directory"
        ) from error
    extra: dict[str, Any] = state["extra"]
    return extra


def load_beside(root: Path, number: int) -> dict[str, Tensor]:
    """Return the caller's tensors of a checkpoint that `load_checkpoint` has verified."""
    path = checkpoint_path(root, number)
    tensors = safetensors.torch.load((path / BESIDE_NAME).read_bytes())
    version = json.loads((path / STATE_NAME).read_bytes())["version"]
    return gate_of_0_1(tensors) if version == VERSION_OF_0_1 else tensors


def _verified_state(path: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the content of `state.json`, once all files match their digests."""
    sums = _read_sums(path)
    if any(sums.get(name) != hashlib.sha256(data).hexdigest() for name, data in files.items()):
        raise ValueError(f"its files are not those that {SUMS_NAME} names")
    state: dict[str, Any] = json.loads(files[STATE_NAME])
    if state["version"] not in (VERSION_OF_0_1, STATE_VERSION):
        raise CheckpointError(
            f"checkpoint {path} is of version {state['version']}, this release reads {VERSION_OF_0_1} and "
            f"{STATE_VERSION}; use the release that wrote it, or start in an empty directory"
        )
    return state


def _sums(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


def _read_sums(path: Path) -> dict[str, str]:
    lines = (path / SUMS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], StateDict]:
    """Return a learner's state as tensors, and the rest as JSON can hold it."""
    tensors, state = split_tensors(learner.state_dict())
    return tensors, state | {"base_digest": learner.encoder.base_digest, "adapter": _adapter(learner)}


def restore_learner(learner: Learner, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Restore a fresh learner from the result of `learner_state`.

    Raises:
        CheckpointError: the state belongs to another encoder, or another shape of adapter.
        KeyError: the state lacks something that this learner has.
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
    learner.load_state_dict(join_tensors(tensors, state))


def _adapter(learner: Learner) -> dict[str, Any]:
    config = learner.encoder.adapter_config()
    return {key: config[key] for key in SAME_ADAPTER}


def checkpoint_path(root: Path, number: int) -> Path:
    """Return the directory of a checkpoint."""
    return root / f"{number:010d}"
