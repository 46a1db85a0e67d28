"""Text vectors under the adapters of earlier versions, stored on disk so that a rollback encodes nothing.

Encoding a catalogue takes seconds to minutes. A rollback to an earlier adapter must not wait for that.
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

from peft_adapters.ranking.arrays import IntArray

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _StoredVectors:
    """A file of text vectors under one adapter, and the texts they were made of; row n is row n of the catalogue."""

    lora: Mapping[str, Tensor]
    texts: Sequence[str | None]
    path: Path
    size_bytes: int


class PreviousAdapterVectors:
    """A store of text vectors by adapter that removes the least recently used beyond a size limit.

    Args:
        directory: directory of the files; created when the first vectors are stored.
        max_bytes: limit on the size of all files together.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self._stored: list[_StoredVectors] = []  # most recently used first
        self._numbers = itertools.count()

    def add(self, lora: Mapping[str, Tensor], texts: Sequence[str | None], vectors: Tensor, rows: IntArray) -> None:
        """Store the vectors of an adapter, unless they are stored already. A disk error is logged, not raised.

        Args:
            lora: LoRA weights under PEFT's names.
            texts: [items] texts in any order.
            vectors: [items, dim] unit vectors of the texts.
            rows: [catalogue rows] place of each catalogue row among the items.
        """
        size_bytes = len(rows) * vectors.shape[1] * vectors.element_size()
        if size_bytes > self._max_bytes or self._use(lora) is not None:
            return
        path = self._directory / f"{next(self._numbers)}.npy"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            np.save(path, vectors.numpy()[rows], allow_pickle=False)
        except OSError as error:
            _remove(path)
            log.warning(
                "text_vectors_not_stored", problem=str(error), follows="a rollback to their adapter encodes them again"
            )
            return
        self._stored.insert(0, _StoredVectors(lora, [texts[row] for row in rows.tolist()], path, size_bytes))
        while sum(stored.size_bytes for stored in self._stored) > self._max_bytes:
            _remove(self._stored.pop().path)

    def get(self, lora: Mapping[str, Tensor]) -> tuple[Sequence[str | None], Tensor] | None:
        """Return the texts [rows] and vectors [rows, dim] stored for an adapter; None if there are none.

        Rows are those of the catalogue at the time the vectors were stored.
        """
        stored = self._use(lora)
        if stored is None:
            return None
        try:
            return stored.texts, torch.from_numpy(np.load(stored.path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            self._stored.remove(stored)
            _remove(stored.path)
            log.warning("stored_text_vectors_unreadable", problem=str(error), follows="they are encoded again")
            return None

    def _use(self, lora: Mapping[str, Tensor]) -> _StoredVectors | None:
        """Return the entry of an adapter and mark it as the most recently used."""
        entry = next((stored for stored in self._stored if same_adapter(stored.lora, lora)), None)
        if entry is not None:
            self._stored.remove(entry)
            self._stored.insert(0, entry)
        return entry


def _remove(path: Path) -> None:
    with suppress(OSError):  # the error that matters has been logged
        path.unlink()


def same_adapter(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two adapters have the same weights.

    Args:
        first: LoRA weights under PEFT's names.
        second: LoRA weights to compare with.
    """
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
