"""The catalogue as the model sees it: items in a fixed order, their texts, and the text vectors of one adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import structlog
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import MAX_TEXT_CHARS
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.modalities import CatalogueItem, ItemVectors

log = structlog.get_logger(__name__)

_LOG_SECONDS = 5.0  # between two lines on how far the encoding is
_CHUNK = 1_024  # items encoded or refreshed at a time; bounds the memory that it takes


class Catalogue:
    """Items in order of arrival: an item keeps its row for ever, its text may change.

    Args:
        cache: where the frozen prefix of each text comes from.
        max_hidden_bytes: of activations held in memory; those of later items are asked of the cache at each use. None
            holds all.
    """

    def __init__(self, cache: PrefixCache, *, max_hidden_bytes: int | None = None) -> None:
        self._cache, self._max_hidden_bytes, self._hidden_bytes = cache, max_hidden_bytes, 0
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.rows: dict[str, int] = {}
        self.hidden: list[Tensor | None] = []  # [tokens, dim] a row; None where it is left to the cache
        self.modality_vectors: dict[int, ItemVectors] = {}  # by row, of items that have vectors of other modalities

    def __len__(self) -> int:
        """Items."""
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        """Whether an item has a row."""
        return item_id in self.rows

    def upsert(self, items: Iterable[CatalogueItem]) -> list[int]:
        """Add items or change them; rows whose text or vectors are new, in order. All of it or, failing, none."""
        changed: dict[str, str] = {}
        vectors: dict[str, ItemVectors] = {}
        for item in items:
            item_id, text = item[:2]
            row = self.rows.get(item_id)
            if row is None or self.texts[row] != text or item_id in changed:
                changed[item_id] = text
            vectors[item_id] = item[2] if len(item) == 3 else {}
        encoded = self._encode(list(changed.values()))
        rows = {
            self._put(item_id, text, hidden) for (item_id, text), hidden in zip(changed.items(), encoded, strict=True)
        }
        return sorted(
            rows | {self.rows[item_id] for item_id, own in vectors.items() if self._put_vectors(item_id, own)}
        )

    def _encode(self, texts: Sequence[str]) -> list[Tensor | None]:
        """Activations of texts, those of a chunk in one piece of memory: many small ones leave holes between them."""
        encoded: list[Tensor | None] = []
        told = time.monotonic()
        for start in range(0, len(texts), _CHUNK):
            hidden = self._cache.get(texts[start : start + _CHUNK])
            encoded += self._held(hidden)
            if time.monotonic() > told + _LOG_SECONDS:
                told = time.monotonic()
                log.info("catalogue_encoding", done=len(encoded), of=len(texts))
        return encoded

    def _held(self, hidden: list[Tensor]) -> list[Tensor | None]:
        """What is kept in memory of a chunk: all of it while there is room, else nothing."""
        size = sum(states.nbytes for states in hidden)
        if self._max_hidden_bytes is not None and self._hidden_bytes + size > self._max_hidden_bytes:
            return [None] * len(hidden)
        self._hidden_bytes += size
        return list(torch.split(torch.cat(hidden), [len(states) for states in hidden]))

    def _put(self, item_id: str, text: str, hidden: Tensor | None) -> int:
        row = self.rows.setdefault(item_id, len(self.ids))
        if row == len(self.ids):
            self.ids.append(item_id)
            self.texts.append(text)
            self.hidden.append(hidden)
        elif (before := self.hidden[row]) is not None:
            self._hidden_bytes -= before.nbytes
        self.texts[row], self.hidden[row] = text, hidden
        return row

    def _put_vectors(self, item_id: str, vectors: ItemVectors) -> bool:
        """Whether they are others than before."""
        row = self.rows[item_id]
        before = self.modality_vectors.pop(row, {})
        if vectors:
            self.modality_vectors[row] = vectors
        return before.keys() != vectors.keys() or not all(
            np.array_equal(before[name], vectors[name]) for name in before
        )

    def vectors(self, suffix: Callable[[Sequence[Tensor]], Tensor], rows: Sequence[int]) -> Tensor:
        """Unit text vectors [rows, dim] under an adapter."""
        vectors = torch.zeros(len(rows), self._cache.dim)  # filled in place: a large catalogue's are not held twice
        for start in range(0, len(rows), _CHUNK):
            hidden = self._activations(rows[start : start + _CHUNK])
            vectors[start : start + len(hidden)] = torch.nn.functional.normalize(suffix(hidden), dim=1)
        return vectors

    def _activations(self, rows: Sequence[int]) -> list[Tensor]:
        """Of some rows, from memory or from the cache."""
        left = [row for row in rows if self.hidden[row] is None]
        asked = dict(zip(left, self._cache.get([self.texts[row] for row in left]), strict=True)) if left else {}
        return [asked[row] if (hidden := self.hidden[row]) is None else hidden for row in rows]


def item_text(*, title: str, brand: str = "", category: str = "", description: str = "") -> str:
    """The text an item is encoded from and found by, cut to what the encoder reads at most.

    >>> item_text(title="Mug", brand="Acme", description="Blue.")
    'Mug. Acme. Blue.'
    """
    return ". ".join(part for part in (title, brand, category, description) if part)[:MAX_TEXT_CHARS]
