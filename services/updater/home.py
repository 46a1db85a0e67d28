"""Where an updater keeps what must survive it, and how it is known that nobody else writes there.

```
<checkpoint_dir>/<scenario>/OWNER                       locked, and touched every second, by whoever owns the place
<checkpoint_dir>/<scenario>/<epoch:08d>/join.sqlite     what waits to be joined, and which checkpoint counts
<checkpoint_dir>/<scenario>/<epoch:08d>/<number:010d>/  checkpoints of the model
<checkpoint_dir>/<scenario>/<epoch:08d>/journal-<number:010d>.jsonl   ends of the slices learnt since that checkpoint
```

**Epochs.** Each start takes what the last one committed into a directory of its own, one higher, and renames it into
place. From then on the older epoch is fenced: its owner, should it wake up, writes only into its own directory, which
nobody reads any more, and finds out before it publishes.

**The commit.** A checkpoint counts once `join.sqlite` has committed its number, together with everything that waited
at that moment. So model, join state and offsets always stand at the same place.

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
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import structlog
from torch import Tensor

from peft_adapters.checkpoint import (
    checkpoint_path,
    load_beside,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from peft_adapters.durable import link, sync_directory
from peft_adapters.errors import AlreadyRunningError, CheckpointError, FencedError
from peft_adapters.learner import Learner
from services.updater.journal import Journal
from streams.join_store import JoinStore, copy_store

log = structlog.get_logger(__name__)

LEASE_SECONDS = 10.0
BEAT_SECONDS = 1.0
JOIN_NAME, OWNER_NAME = "join.sqlite", "OWNER"


class Home:
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
        root.mkdir(parents=True, exist_ok=True)
        self._owner = _own(root / OWNER_NAME, stop)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        try:
            self.epoch = self._begin_epoch()
        except OSError as error:
            raise CheckpointError(f"{root} cannot be taken over: {error}; make room or give rights there") from error
        self._path = _epoch_path(root, self.epoch)
        self.store = JoinStore(self._path / JOIN_NAME)
        self.lineage = self.store.meta("lineage") or secrets.token_hex(16)
        self.store.commit(lineage=self.lineage)
        self.checkpoint = _latest(self.store)
        self._beside: dict[str, Tensor] = {}  # as last saved
        self.journal = Journal(self._path, self.checkpoint)
        self._prune()

    # ---- checkpoints

    def load(self, learner: Learner) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Put the checkpoint that counts into a fresh learner; what was kept beside it, None before the first one.

        Raises:
            CheckpointError: it cannot be read, or belongs to another encoder or release.
        """
        if not self.checkpoint:
            return None
        return load_checkpoint(self._path, self.checkpoint, learner), load_beside(self._path, self.checkpoint)

    def save(self, learner: Learner, extra: dict[str, Any], beside: Mapping[str, Tensor] | None = None) -> None:
        """Make the state of things the one to go on from.

        1. Write the model's checkpoint. 2. See that nobody has taken over. 3. Commit its number together with the join
        state: now it counts. 4. Begin a new journal, and remove what is no longer needed.

        Raises:
            CheckpointError: the disk refused; the checkpoint before still counts.
            FencedError: another updater has taken over.
        """
        number, beside = self.checkpoint + 1, dict(beside or {})
        same = beside.keys() == self._beside.keys() and all(beside[name] is self._beside[name] for name in beside)
        try:
            save_checkpoint(
                self._path, number, learner, extra, beside, beside_of=self.checkpoint if same and beside else None
            )
        except CheckpointError:
            self.verify()  # a directory taken away is no fault of the disk
            raise
        self.verify()
        self.store.commit(checkpoint=str(number))
        self.checkpoint, self._beside = number, beside
        self.journal.begin(number)
        prune_checkpoints(self._path, keep=self._keep)
        self.journal.prune(keep=self._keep)

    def _has_saved(self, beside: Mapping[str, Tensor]) -> int | None:
        """Number of the checkpoint that counts, if it has these very tensors beside it."""
        if not beside or beside.keys() != self._beside.keys():
            return None
        return self.checkpoint if all(beside[name] is kept for name, kept in self._beside.items()) else None

    def verify(self) -> None:
        """See that this updater still owns the place.

        Raises:
            FencedError: another one has taken over.
        """
        newest = max(_epochs(self._root), default=0)
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
        """Take what the newest epoch committed into one of our own."""
        epochs = sorted(_epochs(self._root))
        epoch = 1 + (epochs[-1] if epochs else 0)
        aside = self._root / f".{epoch:08d}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        if epochs:
            _copy_epoch(_epoch_path(self._root, epochs[-1]), aside)
        sync_directory(aside)
        aside.rename(_epoch_path(self._root, epoch))  # fails where another was faster
        sync_directory(self._root)
        return epoch

    def _prune(self) -> None:
        """Older epochs, and what starts that were cut short left, are of no use any more."""
        for path in self._root.iterdir():
            if path.is_dir() and path != self._path:
                shutil.rmtree(path, ignore_errors=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._owner.fileno())


def _own(path: Path, stop: threading.Event) -> IO[str]:
    """Lock the owner's file, at once where its owner has died, after the lease where it hangs."""
    while True:
        with _locked(path) as file:
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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str] | None]:
    """The file, locked and saying who we are; None, and closed, where another holds it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        yield None
        return
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}) + "\n")
    file.flush()
    yield file


def _beats(path: Path, stop: threading.Event) -> bool:
    """Whether the owner touches its file within the lease."""
    last = path.stat().st_mtime_ns
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline and not stop.wait(BEAT_SECONDS / 2):
        if path.stat().st_mtime_ns != last:
            return True
    return stop.is_set()


def _copy_epoch(source: Path, target: Path) -> None:
    """Bring over the join state as last committed, its checkpoint, and the ends recorded since."""
    number = 0
    if (source / JOIN_NAME).exists():
        copy_store(source / JOIN_NAME, target / JOIN_NAME)
        with contextlib.closing(JoinStore(target / JOIN_NAME)) as store:
            number = _latest(store)
    if number:
        shutil.copytree(checkpoint_path(source, number), checkpoint_path(target, number), copy_function=link)
    Journal.copy(source, target, number)


def _latest(store: JoinStore) -> int:
    return int(store.meta("checkpoint") or 0)


def _epochs(root: Path) -> list[int]:
    return [int(path.name) for path in root.iterdir() if path.name.isdigit()]


def _epoch_path(root: Path, epoch: int) -> Path:
    return root / f"{epoch:08d}"
