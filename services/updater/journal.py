"""The journal: where each slice of the log ended, written before the slice is learnt.

Where a slice ends depends on what had arrived by then. A restart reads the ends that were recorded since its checkpoint
and cuts the same slices again, and so learns the same batches. What the gate decided between two slices changes what is
learnt from then on, and when it was asked depends on the clock; so its decision stands beside the slice that followed.
So does whether LoRA waited while a slice was learnt, which depends on how late it was.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from peft_adapters.gate import Decision
from streams.consumer import Offsets

_GATE, _LATE = "gate", "late"  # no topic and partition: they have a slash between them


class Recorded(NamedTuple):
    """A slice: where it ended, what the gate had decided since the slice before, and whether LoRA waits."""

    ends: Offsets
    decision: Decision | None = None
    late: bool = False


class Journal:
    """The ends of the slices since a checkpoint, in order.

    Args:
        directory: where the files lie, one a checkpoint.
        checkpoint: the checkpoint that counts.

    Attributes:
        recorded: what was found at the start and is still to be repeated, oldest first.
    """

    def __init__(self, directory: Path, checkpoint: int) -> None:
        self._directory = directory
        self.recorded = deque(_read(_path(directory, checkpoint)))
        self._file = _path(directory, checkpoint).open("a", encoding="utf-8")

    def record(self, slice_: Recorded) -> None:
        """Write a slice down; it is on the disk when this returns.

        Raises:
            OSError: the disk refused.
        """
        self._write([slice_])

    def begin(self, checkpoint: int) -> None:
        """Begin anew after a checkpoint; what is still to be repeated comes along."""
        self._file.close()
        self._file = _path(self._directory, checkpoint).open("a", encoding="utf-8")
        self._write(self.recorded)

    def _write(self, slices: Iterable[Recorded]) -> None:
        self._file.writelines(json.dumps(_line(each)) + "\n" for each in slices)
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


def _read(path: Path) -> list[Recorded]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # a line without its end was cut short, and its slice never learnt
    return [_recorded(json.loads(line)) for line in whole]


def _line(slice_: Recorded) -> dict[str, int | str]:
    line: dict[str, int | str] = {f"{topic}/{part}": offset for (topic, part), offset in sorted(slice_.ends.items())}
    if slice_.late:
        line[_LATE] = 1
    return line if slice_.decision is None else line | {_GATE: slice_.decision}


def _recorded(line: dict[str, Any]) -> Recorded:
    decision, late = line.pop(_GATE, None), bool(line.pop(_LATE, 0))
    parted = ((name.rsplit("/", 1), offset) for name, offset in line.items())
    return Recorded({(topic, int(partition)): offset for (topic, partition), offset in parted}, decision, late)


def _path(directory: Path, checkpoint: int) -> Path:
    return directory / f"journal-{checkpoint:010d}.jsonl"
