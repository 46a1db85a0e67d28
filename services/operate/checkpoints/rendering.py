"""Rendering of checkpoints as a table and as JSON."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from services.updater.recovery import CheckpointInfo

_COLUMNS = ("EPOCH", "NUMBER", "AGE", "SIZE", "EVENTS", "USABLE", "OFFSETS")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def as_json(root: Path, states: Sequence[CheckpointInfo]) -> str:
    """Return all fields of all checkpoints as JSON."""
    rows = [asdict(info) | {"usable": info.problem is None, "age_seconds": _age_seconds(info)} for info in states]
    return json.dumps({"directory": str(root), "checkpoints": rows}, indent=2)


def table(states: Sequence[CheckpointInfo]) -> Iterator[str]:
    """Yield one line per checkpoint, followed by the reason if it cannot be used."""
    rows = [_row(info) for info in states]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    yield _line(_COLUMNS, widths)
    for info, row in zip(states, rows, strict=True):
        yield _line(row, widths)
        if info.problem is not None:
            yield f"  {info.problem}"


def _row(info: CheckpointInfo) -> tuple[str, ...]:
    events = "?" if info.events_learned is None else str(info.events_learned)
    offsets = " ".join(f"{at}={offset}" for at, offset in info.offsets.items())
    usable = "yes" if info.problem is None else "no"
    return str(info.epoch), str(info.number), _age(info), _size(info.size_bytes), events, usable, offsets


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _age_seconds(info: CheckpointInfo) -> float:
    return round(max(0.0, time.time() - info.saved_at), 1)


def _age(info: CheckpointInfo) -> str:
    seconds = _age_seconds(info)
    for unit_seconds, name in _UNITS:
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.1f}{name}"
    return f"{seconds:.0f}s"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f}MiB"
