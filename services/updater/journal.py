"""The journal: where each slice of the log ended, written before the slice is learnt.

Where a slice ends depends on what had arrived by then. A restart reads the ends that were recorded since its checkpoint
and cuts the same slices again, and so learns the same batches.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from streams.consumer import Offsets


class Journal:
    """The ends of the slices since a checkpoint, in order.

    Args:
        directory: where the files lie, one a checkpoint.
        checkpoint: the checkpoint that counts.

    Attributes:
        recorded: ends found at the start and still to be repeated, oldest first.
    """

    def __init__(self, directory: Path, checkpoint: int) -> None:
        self._directory = directory
        self.recorded = deque(_read(_path(directory, checkpoint)))
        self._file = _path(directory, checkpoint).open("a", encoding="utf-8")

    def record(self, ends: Offsets) -> None:
        """Write the ends of a slice; they are on the disk when this returns.

        Raises:
            OSError: the disk refused.
        """
        self._write([ends])

    def begin(self, checkpoint: int) -> None:
        """Begin anew after a checkpoint; what is still to be repeated comes along."""
        self._file.close()
        self._file = _path(self._directory, checkpoint).open("a", encoding="utf-8")
        self._write(self.recorded)

    def _write(self, slices: Iterable[Offsets]) -> None:
        self._file.writelines(json.dumps(_line(ends)) + "\n" for ends in slices)
        self._file.flush()
        os.fsync(self._file.fileno())

    def prune(self, *, keep: int) -> None:
        """Remove all but the newest `keep` files."""
        for old in sorted(self._directory.glob("journal-*.jsonl"))[:-keep]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @staticmethod
    def copy(source: Path, target: Path, checkpoint: int) -> None:
        """Bring what was recorded since a checkpoint to another directory."""
        copied = Journal(target, checkpoint)
        copied._write(_read(_path(source, checkpoint)))
        copied.close()


def _read(path: Path) -> list[Offsets]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # a line without its end was cut short, and its slice never learnt
    return [_ends(json.loads(line)) for line in whole]


def _line(ends: Offsets) -> dict[str, int]:
    return {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(ends.items())}


def _ends(line: dict[str, int]) -> Offsets:
    parted = ((name.rsplit("/", 1), offset) for name, offset in line.items())
    return {(topic, int(partition)): offset for (topic, partition), offset in parted}


def _path(directory: Path, checkpoint: int) -> Path:
    return directory / f"journal-{checkpoint:010d}.jsonl"
