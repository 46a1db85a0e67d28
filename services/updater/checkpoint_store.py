"""Checkpoints, journals and join state of one updater on disk.

```
<checkpoint_dir>/<scenario>/OWNER                       locked and touched every second by the owner
<checkpoint_dir>/<scenario>/<epoch:08d>/join.sqlite     the join state, and the number of the current checkpoint
<checkpoint_dir>/<scenario>/<epoch:08d>/<number:010d>/  checkpoints of the model, some with a copy of `join.sqlite`
<checkpoint_dir>/<scenario>/<epoch:08d>/journal-<number:010d>.jsonl   ends of the slices learnt since that checkpoint
```

**Epochs.** Each start copies the last committed state into a new directory with the next number, and renames it into
place. From then on the older epoch is fenced: its owner, should it wake up, writes only into its own directory, which
no process reads any more, and notices this before it publishes. The older epoch is deleted once the new one has been
loaded and verified.

**The commit.** A checkpoint is valid once `join.sqlite` has committed its number together with the join state of that
moment. So model, join state and offsets always belong to the same point of the log.

**Falling back.** After the commit, `join.sqlite` is copied into the checkpoint, so that an updater can resume from an
older checkpoint if the newest is damaged; see `services.updater.recovery`. The time spent on copying a large join state
is limited, so only some checkpoints carry a copy. A checkpoint without one is deleted when a newer one is committed.
Journals are kept from the oldest kept checkpoint on.

**The owner.** One process at a time owns the directory; see `services.updater.lease`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from peft_adapters.durable import sync_directory
from peft_adapters.errors import CheckpointError, FencedError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import (
    BESIDE_NAME,
    add_file,
    checkpoint_numbers,
    checkpoint_path,
    has_file,
    load_beside,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from services.disks import remedy
from services.updater.journal import Journal
from services.updater.lease import Lease
from services.updater.recovery import JOIN_NAME, epoch_path, epochs, take_over
from services.updater.schedule import Schedule
from streams.join_store import JoinStore, copy_store

log = structlog.get_logger(__name__)

COPY_SHARE = 0.02  # largest share of the time spent on copying a large join state into checkpoints
SMALL_BYTES = 8 * 2**20  # a join state up to this size is copied into every checkpoint
OWNER_NAME = "OWNER"


class CheckpointStore:
    """The directory of one scenario's updater, owned from construction to `close`.

    Args:
        root: the directory of the scenario's checkpoints.
        keep_checkpoints: the number of checkpoints, and of journals since them, that are kept.
        stop: an event that ends the wait for the lease.

    Attributes:
        epoch: the number of this start; it only rises.
        lineage: an id shared by all starts that resume from the same checkpoints.
        checkpoint: the number of the current checkpoint; 0 before the first.
        journal: the slices learnt since the current checkpoint.
        store: the join state.

    Raises:
        AlreadyRunningError: another updater owns the directory.
        CheckpointError: the kept state cannot be taken over.
    """

    def __init__(self, root: Path, *, keep_checkpoints: int, stop: threading.Event) -> None:
        self._root, self._keep = root, keep_checkpoints
        self._copies = Schedule(0.0, share=COPY_SHARE)
        self._saved_beside: dict[int, dict[str, Tensor]] = {}  # by checkpoint
        self._is_loaded = False
        with contextlib.ExitStack() as undo:
            with _as_checkpoint_error(root):
                root.mkdir(parents=True, exist_ok=True)
                self._lease = undo.enter_context(contextlib.closing(Lease(root / OWNER_NAME, stop)))
                self.epoch = self._begin_epoch()
            self._path = epoch_path(root, self.epoch)
            with _as_checkpoint_error(self._path / JOIN_NAME):
                self.store = JoinStore(self._path / JOIN_NAME)
                self.lineage = self.store.meta("lineage") or secrets.token_hex(16)
                self.store.commit(lineage=self.lineage)
                self.checkpoint = int(self.store.meta("checkpoint") or 0)
            self.journal = Journal(self._path, self.checkpoint)
            undo.pop_all()

    # ---- checkpoints

    def load(self, learner: Learner) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Load the current checkpoint into a fresh learner, and return what was saved beside it.

        Returns:
            The JSON state and the tensors that `save` was given; None before the first checkpoint.

        Raises:
            CheckpointError: the checkpoint cannot be read, or belongs to another encoder or release.
        """
        saved = None
        if self.checkpoint:
            saved = load_checkpoint(self._path, self.checkpoint, learner), load_beside(self._path, self.checkpoint)
        self._drop_older_epochs()
        return saved

    def save(self, learner: Learner, extra: dict[str, Any], beside: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint and make it the one to resume from.

        1. Write the model's checkpoint. 2. Verify that no other updater has taken over. 3. Begin a new journal.
        4. Commit the number together with the join state: the checkpoint is now valid. 5. Copy the join state into the
        checkpoint, and remove files that are no longer needed. After a kill between 3 and 4, a start finds the slices
        in both journals and repeats them once.

        Args:
            learner: the learner to save.
            extra: state to save as JSON.
            beside: tensors to save beside the learner's.

        Raises:
            CheckpointError: the disk refused; the previous checkpoint stays valid.
            FencedError: another updater has taken over.
        """
        self.verify()  # a directory that was taken away is no fault of the disk
        number, beside = self.checkpoint + 1, dict(beside or {})
        try:
            save_checkpoint(self._path, number, learner, extra, beside, beside_of=self._same_beside(beside))
        except CheckpointError:
            self.verify()
            raise
        self.verify()
        self.journal.begin(number)
        with self.disk_errors():
            self.store.commit(checkpoint=str(number))
        self.checkpoint = number
        self._saved_beside[number] = beside
        self._copy_store_when_due()
        self._prune()
        self._drop_older_epochs()

    def disk_errors(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that turns errors of the join state's file into `CheckpointError`."""
        return _as_checkpoint_error(self._path / JOIN_NAME)

    def _same_beside(self, beside: Mapping[str, Tensor]) -> int | None:
        """Return the number of a kept checkpoint with these very tensors, whose file of them can be linked.

        The file of the checkpoint to fall back to is never linked: damage to one file would then cost both.
        """
        copies = self._with_copy()
        excluded = _file_id(self._path, copies[-1]) if copies else None
        for number, tensors in reversed(self._saved_beside.items()):
            same = beside.keys() == tensors.keys() and all(beside[name] is tensors[name] for name in beside)
            if beside and same and _file_id(self._path, number) not in (None, excluded):
                return number
        return None

    def _copy_store_when_due(self) -> None:
        """Copy the join state into the newest checkpoint. If that fails, the older copies stay; learning continues."""
        store = self._path / JOIN_NAME
        if not self._copies.is_due() and store.stat().st_size > SMALL_BYTES:
            return
        try:
            add_file(self._path, self.checkpoint, JOIN_NAME, lambda path: copy_store(store, path))
        except (OSError, sqlite3.Error) as error:
            self._copies.failed()
            path = checkpoint_path(self._path, self.checkpoint) / JOIN_NAME
            log.warning("join_state_not_copied", path=str(path), problem=str(error), retries="after a pause")
        else:
            self._copies.done()

    def _with_copy(self) -> list[int]:
        """Return the numbers of the checkpoints that carry their join state, oldest first."""
        return [number for number in checkpoint_numbers(self._path) if has_file(self._path, number, JOIN_NAME)]

    def _prune(self) -> None:
        """Keep the newest checkpoint, those to fall back to, and the journals since the oldest of them.

        At least the newest `keep_checkpoints` journals are kept, also while there are fewer checkpoints.
        """
        older = [number for number in self._with_copy() if number < self.checkpoint]
        kept = {*older[1 - self._keep :], self.checkpoint}
        prune_checkpoints(self._path, keep=kept)
        self._saved_beside = {number: tensors for number, tensors in self._saved_beside.items() if number in kept}
        self.journal.prune(since=min(*kept, self.checkpoint + 1 - self._keep))

    def verify(self) -> None:
        """Check that this updater still owns the directory.

        Raises:
            FencedError: another updater has taken over.
        """
        newest = max(epochs(self._root), default=0)
        if newest != self.epoch:
            raise FencedError(
                f"{self._root}: expected epoch {self.epoch}, found {newest}; another updater has taken over while this "
                "one hung, so this one ends without writing or publishing anything more"
            )

    def close(self) -> None:
        """Close the files and release the lease; changes that are not committed are lost."""
        self.store.close()
        self.journal.close()
        self._lease.close()

    # ---- taking over

    def _begin_epoch(self) -> int:
        """Copy the newest state that verifies into a new epoch, and return its number."""
        epoch = 1 + max(epochs(self._root), default=0)
        aside = self._root / f".{epoch:08d}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            take_over(self._root, aside)
            sync_directory(aside)
            aside.rename(epoch_path(self._root, epoch))  # fails if another process was faster
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_directory(self._root)
        # Starts that end before they have loaded leave copies of the oldest epoch, which is the last one loaded.
        self._drop(number for number in epochs(self._root)[1:] if number != epoch)
        return epoch

    def _drop_older_epochs(self) -> None:
        """Delete older epochs and the remains of interrupted starts, once this epoch has been loaded."""
        if self._is_loaded:
            return
        self._is_loaded = True
        self._drop(number for number in epochs(self._root) if number != self.epoch)
        for path in self._root.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _drop(self, numbers: Iterable[int]) -> None:
        """Delete epochs. Each is renamed first, so that an interrupted deletion leaves no half of an epoch."""
        for number in list(numbers):
            aside = self._root / f".dropped.{number:08d}"
            with contextlib.suppress(OSError):  # the next start tries again
                epoch_path(self._root, number).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    """Turn disk errors into an error that names the path and a remedy.

    Raises:
        CheckpointError: an operation in the block failed.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}; {remedy(error)}, and start the updater again: it resumes where it stopped"
        ) from error


def _file_id(root: Path, number: int) -> tuple[int, int] | None:
    """Return device and inode of the file of tensors beside a checkpoint; None if there is none."""
    try:
        status = (checkpoint_path(root, number) / BESIDE_NAME).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
