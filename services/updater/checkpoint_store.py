"""Where an updater keeps what must survive it, and how it is known that nobody else writes there.

```
<checkpoint_dir>/<scenario>/OWNER                       locked, and touched every second, by whoever owns the place
<checkpoint_dir>/<scenario>/<epoch:08d>/join.sqlite     what waits to be joined, and which checkpoint counts
<checkpoint_dir>/<scenario>/<epoch:08d>/<number:010d>/  checkpoints of the model, each with a copy of `join.sqlite`
<checkpoint_dir>/<scenario>/<epoch:08d>/journal-<number:010d>.jsonl   ends of the slices learnt since that checkpoint
```

**Epochs.** Each start takes what the last one committed into a directory of its own, one higher, and renames it into
place. From then on the older epoch is fenced: its owner, should it wake up, writes only into its own directory, which
nobody reads any more, and finds out before it publishes. The older epoch is deleted once the new one has been loaded
and verified.

**The commit.** A checkpoint counts once `join.sqlite` has committed its number, together with everything that waited
at that moment. So model, join state and offsets always stand at the same place.

**Falling back.** After the commit, `join.sqlite` is copied into the checkpoint, so that an older checkpoint can be gone
on from if the newest turns out to be damaged; see `services.updater.recovery`. Copying a large join state is limited
to a share of the time, so that only some checkpoints carry a copy. A checkpoint without one is deleted once a newer
one counts. Journals are kept from the oldest checkpoint that is kept.

**The owner.** Who dies loses the lock, and a successor starts at once. Who holds the lock and touches the file is at
work: a second updater ends with an error. Who holds the lock and touches nothing for `LEASE_SECONDS` hangs: it is
taken over from.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import structlog
from torch import Tensor

from peft_adapters.durable import path_in_errors, sync_directory
from peft_adapters.errors import AlreadyRunningError, CheckpointError, FencedError
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
from services.updater.recovery import JOIN_NAME, epoch_path, epochs, take_over
from services.updater.schedule import Schedule
from streams.join_store import JoinStore, copy_store

log = structlog.get_logger(__name__)

LEASE_SECONDS = 10.0
BEAT_SECONDS = 1.0
COPY_SHARE = 0.02  # of the time, at most, that copying a large join state into checkpoints takes
SMALL_BYTES = 8 * 2**20  # a join state up to this size is copied into every checkpoint
OWNER_NAME = "OWNER"


class CheckpointStore:
    """The place of one scenario's updater, owned from construction to `close`.

    Args:
        root: its directory.
        keep_checkpoints: how many checkpoints, and journals of slices since them, are kept.
        stop: ends the wait for a lease.

    Attributes:
        epoch: the number of this start; it only rises.
        lineage: the same for every start that goes on from the same checkpoints.
        checkpoint: number of the checkpoint that counts; 0 before the first.
        store: what waits to be joined.

    Raises:
        AlreadyRunningError: another updater is at work here.
        CheckpointError: what is here cannot be taken over.
    """

    def __init__(self, root: Path, *, keep_checkpoints: int, stop: threading.Event) -> None:
        self._root, self._keep = root, keep_checkpoints
        self._ended = threading.Event()
        self._copies = Schedule(0.0, share=COPY_SHARE)
        self._saved_beside: dict[int, dict[str, Tensor]] = {}  # by checkpoint
        self._is_loaded = False
        with contextlib.ExitStack() as undo:
            with _as_checkpoint_error(root):
                root.mkdir(parents=True, exist_ok=True)
                self._owner = undo.enter_context(_own(root / OWNER_NAME, stop))
                undo.callback(self._ended.set)
                threading.Thread(target=self._beat, name="lease", daemon=True).start()
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
        """Put the checkpoint that counts into a fresh learner; what was kept beside it, None before the first one.

        Raises:
            CheckpointError: it cannot be read, or belongs to another encoder or release.
        """
        kept = None
        if self.checkpoint:
            kept = load_checkpoint(self._path, self.checkpoint, learner), load_beside(self._path, self.checkpoint)
        self._drop_older_epochs()
        return kept

    def save(self, learner: Learner, extra: dict[str, Any], beside: Mapping[str, Tensor] | None = None) -> None:
        """Make the state of things the one to go on from.

        1. Write the model's checkpoint. 2. See that nobody has taken over. 3. Begin a new journal. 4. Commit the number
        together with the join state: now it counts. 5. Copy the join state into the checkpoint, and remove what is no
        longer needed. Killed between 3 and 4, a start finds the slices in both journals and takes them once.

        Raises:
            CheckpointError: the disk refused; the checkpoint before still counts.
            FencedError: another updater has taken over.
        """
        self.verify()  # a directory taken away is no fault of the disk
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
        """Turn errors of the join state's file into `CheckpointError`."""
        return _as_checkpoint_error(self._path / JOIN_NAME)

    def _same_beside(self, beside: Mapping[str, Tensor]) -> int | None:
        """A kept checkpoint with these very tensors, whose file of them can be linked.

        Not the file of the checkpoint to fall back to: damage to one file would then cost both.
        """
        copies = self._with_copy()
        spared = _file_id(self._path, copies[-1]) if copies else None
        for number, kept in reversed(self._saved_beside.items()):
            same = beside.keys() == kept.keys() and all(beside[name] is kept[name] for name in beside)
            if beside and same and _file_id(self._path, number) not in (None, spared):
                return number
        return None

    def _copy_store_when_due(self) -> None:
        """Copy the join state into the newest checkpoint. If that fails, the older copies stay and learning goes on."""
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
        """Numbers of the checkpoints that carry their join state, oldest first."""
        return [number for number in checkpoint_numbers(self._path) if has_file(self._path, number, JOIN_NAME)]

    def _prune(self) -> None:
        """Keep the newest checkpoint, those to fall back to, and the journals since the oldest of them.

        No fewer than the newest `keep_checkpoints` journals stay, also while there are fewer checkpoints.
        """
        older = [number for number in self._with_copy() if number < self.checkpoint]
        kept = {*older[1 - self._keep :], self.checkpoint}
        prune_checkpoints(self._path, keep=kept)
        self._saved_beside = {number: kept_ for number, kept_ in self._saved_beside.items() if number in kept}
        self.journal.prune(since=min(*kept, self.checkpoint + 1 - self._keep))

    def verify(self) -> None:
        """See that this updater still owns the place.

        Raises:
            FencedError: another one has taken over.
        """
        newest = max(epochs(self._root), default=0)
        if newest != self.epoch:
            raise FencedError(
                f"{self._root}: expected epoch {self.epoch}, found {newest}; another updater has taken over while this "
                "one hung, so this one ends without writing or publishing anything more"
            )

    def close(self) -> None:
        """Leave; what is not committed is forgotten."""
        self._ended.set()
        self.store.close()
        self.journal.close()
        self._owner.close()

    # ---- taking over

    def _begin_epoch(self) -> int:
        """Take the newest state that verifies into an epoch of our own."""
        epoch = 1 + max(epochs(self._root), default=0)
        aside = self._root / f".{epoch:08d}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            take_over(self._root, aside)
            sync_directory(aside)
            aside.rename(epoch_path(self._root, epoch))  # fails where another was faster
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_directory(self._root)
        # Starts that end before they have loaded leave copies of the oldest epoch, which is the last one loaded.
        self._drop(number for number in epochs(self._root)[1:] if number != epoch)
        return epoch

    def _drop_older_epochs(self) -> None:
        """Delete older epochs, and what starts that were cut short left: this one has been loaded."""
        if self._is_loaded:
            return
        self._is_loaded = True
        self._drop(number for number in epochs(self._root) if number != self.epoch)
        for path in self._root.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _drop(self, numbers: Iterable[int]) -> None:
        """Delete epochs. Each is renamed first, so that a deletion cut short leaves no half of an epoch."""
        for number in list(numbers):
            aside = self._root / f".dropped.{number:08d}"
            with contextlib.suppress(OSError):  # tried again at the next start
                epoch_path(self._root, number).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._owner.fileno())


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one that names the path and a remedy.

    Raises:
        CheckpointError: an operation within failed.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}; {remedy(error)}, and start the updater again: it goes on where it was"
        ) from error


def _own(path: Path, stop: threading.Event) -> IO[str]:
    """Lock the owner's file, at once where its owner has died, after the lease where it hangs."""
    while True:
        file = _locked(path)
        if file is not None:
            return file
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        if _beats(path, stop):
            raise AlreadyRunningError(
                f"another updater ({holder}) is at work in {path.parent}; stop it first, or give this one another "
                "`updater.checkpoint_dir` and scenario"
            )
        log.warning("owner_hangs", owner=holder, lease_seconds=LEASE_SECONDS, path=str(path))
        path.unlink(missing_ok=True)  # the one that hangs keeps its lock on a file that has no name any more


def _locked(path: Path) -> IO[str] | None:
    """The file, locked and saying who we are; None, and closed, where another holds it."""
    file = path.open("a+", encoding="utf-8")
    try:
        with path_in_errors(path):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    with contextlib.suppress(OSError):  # the lock is what counts; the text is for people
        _say_owner(file.fileno())
    return file


def _say_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode() + b"\n")


def _beats(path: Path, stop: threading.Event) -> bool:
    """Whether the owner touches its file within the lease."""
    last = path.stat().st_mtime_ns
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline and not stop.wait(BEAT_SECONDS / 2):
        if path.stat().st_mtime_ns != last:
            return True
    return stop.is_set()


def _file_id(root: Path, number: int) -> tuple[int, int] | None:
    """Tells the file of tensors beside a checkpoint from all others; None where there is none."""
    try:
        found = (checkpoint_path(root, number) / BESIDE_NAME).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
