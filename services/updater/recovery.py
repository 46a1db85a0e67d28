"""Selection of the state that an updater resumes from: the newest one that verifies.

A state consists of a checkpoint, the join state that belongs to it, and the journals of all slices learnt since. The
newest checkpoint belongs to `join.sqlite`, older ones to the copy of it that they carry. A start copies the newest
state that verifies into its own epoch. If that is an older one, the slices of its journal and of all later journals are
repeated, which leads bit for bit to the same state.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from peft_adapters.durable import link_or_copy, sync_file
from peft_adapters.errors import CheckpointError
from peft_adapters.lifecycle.checkpoint import (
    STATE_NAME,
    checkpoint_numbers,
    checkpoint_path,
    has_file,
    verify_checkpoint,
)
from services.updater.journal import journal_numbers, journal_path, read_chain, write_chain
from streams.join_store import check_store, copy_store

log = structlog.get_logger(__name__)

JOIN_NAME = "join.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A checkpoint on disk and its join state.

    Attributes:
        epoch: the directory of the epoch that wrote it.
        number: the number of the checkpoint; 0 before the first, -1 if the join state is damaged.
        store: the path of the join state that belongs to it.
    """

    epoch: Path
    number: int
    store: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint as `headwater checkpoints` shows it.

    Attributes:
        epoch: the number of the epoch that wrote it.
        number: the number of the checkpoint.
        saved_at: the time it was saved, Unix seconds.
        size_bytes: the size of its files.
        events_learned: the events learnt; None if its state file cannot be read.
        offsets: the next offset by `topic/partition`.
        problem: the reason why an updater cannot resume from it; None if it can.
    """

    epoch: int
    number: int
    saved_at: float
    size_bytes: int
    events_learned: int | None
    offsets: dict[str, int]
    problem: str | None


def epochs(root: Path) -> list[int]:
    """Return the numbers of all epochs, oldest first."""
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def epoch_path(root: Path, epoch: int) -> Path:
    """Return the directory of an epoch."""
    return root / f"{epoch:08d}"


def take_over(root: Path, target: Path) -> None:
    """Copy the newest state that verifies into an empty directory, without changing the source.

    Raises:
        CheckpointError: no state verifies, or the newest epoch has lost its join state.
        OSError: the disk refused.
    """
    refused: list[str] = []
    for epoch in reversed(epochs(root)):
        source = epoch_path(root, epoch)
        _require_store(source)
        for state in _states(source):
            try:
                _copy(state, target)
            except _Damaged as error:
                log.warning("kept_state_damaged", problem=str(error), follows="the state before it is tried")
                refused.append(str(error))
                _empty(target)
            else:
                if refused:
                    log.warning("fell_back", checkpoint=state.number, epoch=epoch, repeats="the journals since")
                return
    if refused:
        raise CheckpointError(
            f"no checkpoint in {root} can be used: {'; '.join(refused)}; put the files back from a copy, or move the "
            "directory away to start from nothing (see `headwater checkpoints list`)"
        )


class _Damaged(Exception):
    """A state does not verify; an older one may."""


def _states(source: Path) -> Iterator[State]:
    """Yield the states of an epoch that may verify, newest first."""
    copies, committed = _copies(source), _committed(source)
    if committed < max(copies, default=0):  # copies are made after the commit, so the file has lost commits
        committed = -1
    yield State(epoch=source, number=committed, store=source / JOIN_NAME)
    for number in reversed(copies):
        yield State(epoch=source, number=number, store=checkpoint_path(source, number) / JOIN_NAME)


def _copies(source: Path) -> list[int]:
    """Return the numbers of the checkpoints that carry a copy of their join state, oldest first."""
    return [number for number in checkpoint_numbers(source) if has_file(source, number, JOIN_NAME)]


def _committed(source: Path) -> int:
    """Return the number of the checkpoint that `join.sqlite` committed; -1 if the file is damaged."""
    store = source / JOIN_NAME
    if not store.exists():
        return 0
    try:
        return int(check_store(store).get("checkpoint", 0))
    except (sqlite3.Error, ValueError):
        return -1


def _newest_known(source: Path) -> int:
    """Return the number of the newest checkpoint known to have been committed."""
    return max(0, _committed(source), *_copies(source))


def _require_store(source: Path) -> None:
    """Refuse an epoch that has checkpoints and no join state, as on a wrong or partly restored disk.

    Raises:
        CheckpointError: `join.sqlite` is missing or empty beside checkpoints.
    """
    store, numbers = source / JOIN_NAME, checkpoint_numbers(source)
    if not numbers and max(journal_numbers(source), default=0) == 0:
        return
    try:
        lost = "missing" if not store.exists() else "empty" if not _is_used(store) else None
    except sqlite3.Error:
        return  # damaged: `_copy` reports it
    if lost is None:
        return
    copies = _copies(source)
    copy = f" such as {checkpoint_path(source, copies[-1]) / JOIN_NAME}" if copies else ""
    raise CheckpointError(
        f"{store} is {lost}, and checkpoints lie beside it; put it back from a copy{copy}, or move {source.parent} "
        "away to start from nothing"
    )


def _is_used(store: Path) -> bool:
    """Return whether an updater has used a store: each commits its lineage first."""
    return store.stat().st_size > 0 and "lineage" in check_store(store)


def _copy(state: State, target: Path) -> None:
    """Verify a state and copy it, together with older checkpoints to fall back to.

    Raises:
        _Damaged: the state does not verify.
        CheckpointError: a journal that every state of this epoch needs is damaged.
        OSError: the disk refused.
    """
    if state.number < 0:
        raise _Damaged(f"{state.store} is damaged, or lacks its last commit")
    if state.number:
        _verify(state)
    if state.store.exists():
        copy_store(state.store, target / JOIN_NAME)
        sync_file(target / JOIN_NAME)
    write_chain(state.epoch, target, state.number, newest=_newest_known(state.epoch))
    if state.number:
        shutil.copytree(
            checkpoint_path(state.epoch, state.number),
            checkpoint_path(target, state.number),
            copy_function=link_or_copy,
        )
    for number in _copies(state.epoch):
        if number < state.number:
            shutil.copytree(
                checkpoint_path(state.epoch, number), checkpoint_path(target, number), copy_function=link_or_copy
            )
    for number in journal_numbers(state.epoch):
        if number < state.number and journal_path(state.epoch, number).is_file():
            link_or_copy(journal_path(state.epoch, number), journal_path(target, number))


def _verify(state: State) -> None:
    try:
        verify_checkpoint(state.epoch, state.number)
        committed = int(check_store(state.store).get("checkpoint", 0))
    except (CheckpointError, ValueError) as error:
        raise _Damaged(str(error)) from error
    except sqlite3.Error as error:
        raise _Damaged(f"{state.store} is damaged: {error}") from error
    if committed != state.number:
        raise _Damaged(f"{state.store} belongs to checkpoint {committed}, not {state.number}")


def _empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


# ---- for operators


def inspect_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Check all checkpoints in a directory without changing anything, and return them oldest first.

    Raises:
        OSError: the directory cannot be read.
    """
    if not root.exists():
        return []
    checkpoints = []
    for epoch in epochs(root):
        numbers: list[int] = []
        with suppress(FileNotFoundError):  # a running updater has just deleted the epoch
            numbers = checkpoint_numbers(epoch_path(root, epoch))
        for number in numbers:
            with suppress(FileNotFoundError):  # or the checkpoint
                checkpoints.append(_inspect(root, epoch, number))
    return checkpoints


def _inspect(root: Path, epoch: int, number: int) -> CheckpointInfo:
    source = epoch_path(root, epoch)
    path = checkpoint_path(source, number)
    files = [entry.lstat() for entry in path.iterdir()]
    events_learned, offsets = _read_progress(path)
    return CheckpointInfo(
        epoch=epoch,
        number=number,
        saved_at=path.stat().st_mtime,
        size_bytes=sum(file.st_size for file in files),
        events_learned=events_learned,
        offsets=offsets,
        problem=_problem(source, number),
    )


def _read_progress(path: Path) -> tuple[int | None, dict[str, int]]:
    """Return the events learnt and the offsets of a checkpoint; None and nothing if they cannot be read."""
    try:
        state: dict[str, Any] = json.loads((path / STATE_NAME).read_bytes())
        return state["learner"]["events_learned"], state["extra"].get("offsets", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def _problem(source: Path, number: int) -> str | None:
    """Return the reason why an updater cannot resume from a checkpoint; None if it can."""
    try:
        _require_store(source)
    except CheckpointError as error:
        return str(error)
    problem: str | None = "an older checkpoint without a copy of its join state"
    for state in _states(source):
        if state.number == number:
            try:
                _verify(state)
                read_chain(source, number, newest=_newest_known(source))
            except (_Damaged, CheckpointError) as error:
                problem = str(error)
            else:
                return None
    return problem
