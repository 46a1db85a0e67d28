"""Text vectors under adapters of earlier versions, kept on the disk: going back to one of those encodes nothing.

Under an adapter that is not served any more a catalogue's vectors would take as long as under a new one, seconds to
minutes, just when a bad version must go at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch
from torch import Tensor

from peft_adapters.ranking.counters import IntArray

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Vectors under one adapter: their file, and the texts they were made of; row n is the catalogue's."""

    lora: Mapping[str, Tensor]
    texts: Sequence[str | None]
    path: Path
    size_bytes: int


class PreviousAdapterVectors:
    """Keeps vectors of the adapters that were served last.

    Args:
        directory: where they go; made when the first are kept.
        most_bytes: of all; more are let go, the longest unused first.
    """

    def __init__(self, directory: Path, *, most_bytes: int) -> None:
        self._directory, self._most_bytes = directory, most_bytes
        self._kept: list[_Kept] = []  # the last in use first
        self._numbers = itertools.count()

    def keep(self, lora: Mapping[str, Tensor], texts: Sequence[str | None], vectors: Tensor, rows: IntArray) -> None:
        """Keep what was made under an adapter, unless it is kept already. A disk that fails is logged, no more.

        Args:
            lora: the adapter under PEFT's names.
            texts: [items] in any order.
            vectors: [items, dim] theirs.
            rows: [catalogue rows] where each row of the catalogue is among them.
        """
        size_bytes = len(rows) * vectors.shape[1] * vectors.element_size()
        if size_bytes > self._most_bytes or self._used(lora) is not None:
            return
        path = self._directory / f"{next(self._numbers)}.npy"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            np.save(path, vectors.numpy()[rows], allow_pickle=False)
        except OSError as error:
            _remove(path)
            log.warning("texts_not_kept", problem=str(error), follows="going back to their adapter encodes them again")
            return
        self._kept.insert(0, _Kept(lora, [texts[row] for row in rows.tolist()], path, size_bytes))
        while sum(one.size_bytes for one in self._kept) > self._most_bytes:
            _remove(self._kept.pop().path)

    def find(self, lora: Mapping[str, Tensor]) -> tuple[Sequence[str | None], Tensor] | None:
        """Texts [rows] of the catalogue, and their vectors [rows, dim] under an adapter; None if they are not kept."""
        kept = self._used(lora)
        if kept is None:
            return None
        try:
            return kept.texts, torch.from_numpy(np.load(kept.path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            self._kept.remove(kept)
            _remove(kept.path)
            log.warning("kept_texts_not_read", problem=str(error), follows="they are encoded again")
            return None

    def _used(self, lora: Mapping[str, Tensor]) -> _Kept | None:
        """What is kept of an adapter, which from now on was the last in use."""
        found = next((one for one in self._kept if same_adapter(one.lora, lora)), None)
        if found is not None:
            self._kept.remove(found)
            self._kept.insert(0, found)
        return found


def _remove(path: Path) -> None:
    with suppress(OSError):  # a disk that fails has been told of where it mattered
        path.unlink()


def same_adapter(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two adapters have the same weights."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
