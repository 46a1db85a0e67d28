"""The journal: the end of each slice of the log, written before the slice is learnt.

The end of a slice depends on which records had arrived by then. A restart reads the ends recorded since its checkpoint,
cuts the same slices again, and so learns the same micro-batches. A decision of the gate between two slices changes all
later learning, and its time depends on the clock, so the decision is recorded with the slice that followed. The same
holds for slices that LoRA skipped because learning lagged.

Each line carries its own checksum (`crc`) and that of the line before it (`after`), also across journals, so that a
changed digit and a lost line are both detected. Lines of earlier releases have neither.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from peft_adapters.durable import durable_file, sync_directory
from peft_adapters.errors import CheckpointError
from peft_adapters.lifecycle.gate import Decision
from streams.offsets import Offsets, decode_offsets, encode_offsets

_LINE_START = b'{"'
_CONSEQUENCE = ": their slices are then read from the log again, and may be cut differently"


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A slice of the log, and everything else that determines what is learnt from it.

    Attributes:
        ends: the offset after the slice's last record, for every partition.
        decision: the gate's decision since the previous slice, if there was one.
        lagging: whether LoRA skips the slice because learning lags behind the log.
        now_ms: the reader's clock when the slice was cut, epoch milliseconds. Event times are bounded by it.
        topic_ids: the identity of each topic read, as the broker reports it.
        missed: records that retention deleted before this slice could read them, by partition.
    """

    ends: Offsets
    decision: Decision | None = None
    lagging: bool = False
    now_ms: int = 0
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    missed: Offsets = field(default_factory=dict)


class Journal:
    """The slices learnt since a checkpoint, in order.

    Args:
        directory: the directory of the journals, one file for each checkpoint.
        checkpoint: the number of the current checkpoint.

    Attributes:
        to_replay: the slices of earlier runs that are still to be repeated, oldest first.

    Raises:
        CheckpointError: the file cannot be opened, or one of its lines is damaged.
    """

    def __init__(self, directory: Path, checkpoint: int) -> None:
        self._directory = directory
        self._path = journal_path(directory, checkpoint)
        lines = _read(self._path)
        self.to_replay = deque(entry for _, entry in lines)
        self._last_crc = _crc_of(lines or _read(journal_path(directory, checkpoint - 1)))
        self._file = _open(self._path, "ab")

    def record(self, entry: JournalEntry) -> None:
        """Append a slice; it is on disk when this returns.

        Raises:
            CheckpointError: the disk refused; the file is as it was before.
        """
        line, crc = _encode(entry, after=self._last_crc)
        self._write(f"{line}\n")
        self._last_crc = crc

    def begin(self, checkpoint: int) -> None:
        """Begin a new file for the next checkpoint, and copy the slices that are still to be repeated into it.

        Raises:
            CheckpointError: the disk refused.
        """
        carried = [line for line, _ in _read(self._path)[-len(self.to_replay) :]] if self.to_replay else []
        self._file.close()
        self._path = journal_path(self._directory, checkpoint)
        self._file = _open(self._path, "wb")
        self.write_lines(carried)

    def abandon(self) -> None:
        """Drop the slices that are still to be repeated, on disk too: a restart then repeats only what follows.

        Raises:
            CheckpointError: the disk refused.
        """
        remaining = _read(self._path)[: -len(self.to_replay) or None]
        text = "".join(f"{line}\n" for line, _ in remaining)
        self._file.close()
        try:
            with durable_file(self._path) as file:
                file.write(text.encode())
            sync_directory(self._directory)
        except OSError as error:
            raise _write_error(self._path, error) from error
        self.to_replay.clear()
        self._last_crc = _crc_of(remaining)
        self._file = _open(self._path, "ab")

    def write_lines(self, lines: Iterable[str]) -> None:
        """Append lines of another journal; they are on disk when this returns.

        Raises:
            CheckpointError: the disk refused.
        """
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            _write_all(self._file, text.encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise _write_error(self._path, error) from error

    def prune(self, *, since: int) -> None:
        """Remove the files of checkpoints before `since`."""
        for number in journal_numbers(self._directory):
            if number < since:
                journal_path(self._directory, number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_chain(directory: Path, checkpoint: int, *, newest: int) -> list[str]:
    """Read the lines of all slices recorded since a checkpoint, from its own journal and all later ones.

    Slices that a later journal carried over from the one before have the same line in both, and are returned once.

    Args:
        directory: the directory of the journals.
        checkpoint: the number of the checkpoint.
        newest: the number of the newest checkpoint known to have been committed; its journal must exist.

    Raises:
        CheckpointError: a journal is missing or damaged, or lines in its middle are missing.
    """
    lines: dict[str, None] = {}
    after: int | None = None
    last = max([*journal_numbers(directory), newest])
    for number in range(checkpoint, last + 1):
        path = journal_path(directory, number)
        if number <= newest and not path.exists():
            raise CheckpointError(
                f"journal {path} is missing; put it back from a copy, or make an empty file in its place{_CONSEQUENCE}"
            )
        for place, (line, _) in enumerate(_read(path, is_open=number == last), start=1):
            if line in lines:
                continue
            fields: dict[str, Any] = json.loads(line)
            if None not in (after, fields.get("after")) and fields["after"] != after:
                raise CheckpointError(
                    f"lines are missing before line {place} of journal {path}; put the journals back from a copy, or "
                    f"delete that line, all lines after it and all lines of later journals{_CONSEQUENCE}"
                )
            after = fields.get("crc")
            lines[line] = None
    return list(lines)


def write_chain(source: Path, target: Path, checkpoint: int, *, newest: int) -> None:
    """Write the lines that `read_chain` returns as one journal in another directory.

    Raises:
        CheckpointError: a journal is missing or damaged, or the disk refused.
    """
    with closing(Journal(target, checkpoint)) as journal:
        journal.write_lines(read_chain(source, checkpoint, newest=newest))


def _read(path: Path, *, is_open: bool = True) -> list[tuple[str, JournalEntry]]:
    """Read the lines of a journal, each as text and decoded.

    Args:
        path: the path of the journal.
        is_open: whether the last line may have been cut short by a kill; its slice was never learnt.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"journal {path} cannot be read: {error}; put it back from a copy") from error
    *complete, rest = data.split(b"\n")
    if rest.strip(b"\0") and not (is_open and _LINE_START.startswith(rest[: len(_LINE_START)])):
        complete.append(rest)
    return [_parse(path, number, line) for number, line in enumerate(complete, start=1)]


def _parse(path: Path, number: int, line: bytes) -> tuple[str, JournalEntry]:
    try:
        text = line.decode()
        fields = json.loads(text)
        if "crc" in fields and fields["crc"] != _crc(_without_crc(fields)):
            raise ValueError("its checksum does not match")
        return text, _decode(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"line {number} of journal {path} is damaged: {type(error).__name__}: {error}; put the file back from a "
            f"copy, or delete that line and all lines after it, also in later journals{_CONSEQUENCE}"
        ) from error


def _open(path: Path, mode: Literal["ab", "wb"]) -> FileIO:
    """Open a journal unbuffered, so that bytes that could not be written are not written later by `close`."""
    try:
        return path.open(mode, buffering=0)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_all(file: FileIO, data: bytes) -> None:
    """Write all bytes; a nearly full disk may take a part first and refuse the rest."""
    while data:
        data = data[file.write(data) :]


def _write_error(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"journal {path} cannot be written: {error.strerror or error}; make room or give rights there, and start the "
        "updater again: it resumes where it stopped"
    )


def _encode(entry: JournalEntry, *, after: int | None) -> tuple[str, int]:
    """Return the line of an entry, without its line break, and its checksum."""
    line: dict[str, Any] = {"ends": encode_offsets(entry.ends), "now_ms": entry.now_ms}
    if entry.decision is not None:
        line["gate"] = entry.decision
    if entry.lagging:
        line["late"] = True
    if entry.topic_ids:
        line["topic_ids"] = dict(entry.topic_ids)
    if entry.missed:
        line["missed"] = encode_offsets(entry.missed)
    if after is not None:
        line["after"] = after
    crc = _crc(line)
    return json.dumps(line | {"crc": crc}), crc


def _crc(line: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


def _without_crc(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "crc"}


def _crc_of(lines: Sequence[tuple[str, JournalEntry]]) -> int | None:
    """Return the checksum of the last line; None if there is no line or it has no checksum."""
    return json.loads(lines[-1][0]).get("crc") if lines else None


def _decode(line: dict[str, Any]) -> JournalEntry:
    return JournalEntry(
        decode_offsets(line["ends"]),
        line.get("gate"),
        line.get("late", False),
        line["now_ms"],
        line.get("topic_ids", {}),
        decode_offsets(line.get("missed", {})),
    )


def journal_path(directory: Path, checkpoint: int) -> Path:
    """Return the path of the journal of slices learnt since a checkpoint."""
    return directory / f"journal-{checkpoint:010d}.jsonl"


def journal_numbers(directory: Path) -> list[int]:
    """Return the numbers of the checkpoints that have a journal in a directory, oldest first."""
    names = (path.stem.removeprefix("journal-") for path in directory.glob("journal-*.jsonl"))
    return sorted(int(name) for name in names if name.isdigit())
