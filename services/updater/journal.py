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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_adapters.durable import sync_directory
from peft_adapters.gate import Decision
from streams.consumer import Offsets


@dataclass(frozen=True, slots=True)
class Recorded:
    """A slice of the log, and whatever else decides what is learnt from it.

    Attributes:
        ends: the offset after its last record, of every partition.
        decision: what the gate decided since the slice before.
        late: whether LoRA skips this slice.
        now_ms: the reader's clock when the slice was cut, epoch milliseconds. Event times are bounded by it.
        topic_ids: the identity of each topic read, as the broker reports it.
        missed: records that retention deleted before this slice could read them, by partition.
    """

    ends: Offsets
    decision: Decision | None = None
    late: bool = False
    now_ms: int = 0
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    missed: Offsets = field(default_factory=dict)


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

    def abandon(self) -> None:
        """Drop the slices that are still to be repeated, on disk too: a restart then repeats only what follows."""
        path = Path(self._file.name)
        repeated = _read(path)[: -len(self.recorded) or None]
        self.recorded.clear()
        self._file.close()
        whole = path.with_suffix(".new")
        with whole.open("w", encoding="utf-8") as self._file:
            self._write(repeated)
        whole.replace(path)
        sync_directory(self._directory)
        self._file = path.open("a", encoding="utf-8")

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


def _line(slice_: Recorded) -> dict[str, Any]:
    line: dict[str, Any] = {"ends": by_name(slice_.ends), "now_ms": slice_.now_ms}
    if slice_.decision is not None:
        line["gate"] = slice_.decision
    if slice_.late:
        line["late"] = True
    if slice_.topic_ids:
        line["topic_ids"] = dict(slice_.topic_ids)
    if slice_.missed:
        line["missed"] = by_name(slice_.missed)
    return line


def _recorded(line: dict[str, Any]) -> Recorded:
    return Recorded(
        by_partition(line["ends"]),
        line.get("gate"),
        line.get("late", False),
        line["now_ms"],
        line.get("topic_ids", {}),
        by_partition(line.get("missed", {})),
    )


def by_name(offsets: Offsets) -> dict[str, int]:
    """Offsets with `topic/partition` as their keys, for JSON."""
    return {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())}


def by_partition(offsets: Mapping[str, int]) -> Offsets:
    """The inverse of `by_name`."""
    parted = ((name.rsplit("/", 1), offset) for name, offset in offsets.items())
    return {(topic, int(partition)): offset for (topic, partition), offset in parted}


def _path(directory: Path, checkpoint: int) -> Path:
    return directory / f"journal-{checkpoint:010d}.jsonl"
