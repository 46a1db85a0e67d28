"""The model's catalogue: items in a fixed order, their texts and cached activations, and vectors under an adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import structlog
import torch
from torch import Tensor

from peft_adapters.encoder.encoder import MAX_TEXT_CHARS
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.item_facts import ItemFacts, ItemFactsTable
from peft_adapters.ranking.modalities import CatalogueItem, ItemVectors, price_of

log = structlog.get_logger(__name__)

_LOG_SECONDS = 5.0  # between two log lines about progress
_CHUNK = 1_024  # items encoded or refreshed at a time; bounds memory


class Catalogue:
    """Items in order of arrival; an item keeps its row for ever, and its text and price may change.

    Args:
        cache: cache that provides the frozen activations of each text.
        max_hidden_bytes: limit of activations in memory; those of further items are read from the cache at each use.
            None keeps all in memory.

    Attributes:
        ids: item id of each row.
        texts: text of each row.
        rows: row of each item id.
        hidden: activations [tokens, dim] of each row; None where they are only in the cache.
        modality_vectors: vectors of other modalities, by row, of the items that have any.
        prices: price, by row, of the items that have one.
    """

    def __init__(self, cache: PrefixCache, *, max_hidden_bytes: int | None = None) -> None:
        self._cache, self._max_hidden_bytes, self._hidden_bytes = cache, max_hidden_bytes, 0
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.rows: dict[str, int] = {}
        self.hidden: list[Tensor | None] = []
        self.modality_vectors: dict[int, ItemVectors] = {}
        self.prices: dict[int, float] = {}
        self._facts = ItemFactsTable()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        """Return whether an item has a row."""
        return item_id in self.rows

    def upsert(self, items: Iterable[CatalogueItem]) -> list[int]:
        """Add or change items, all or none, and return the sorted rows whose text or vectors changed."""
        changed: dict[str, str] = {}
        vectors: dict[str, ItemVectors] = {}
        prices: dict[str, float | None] = {}
        for item in items:
            item_id, text = item[0], item[1]
            row = self.rows.get(item_id)
            if row is None or self.texts[row] != text or item_id in changed:
                changed[item_id] = text
            vectors[item_id] = item[2] if len(item) > 2 else {}
            prices[item_id] = price_of(item)
        encoded = self._encode(list(changed.values()))
        rows = {
            self._set_text(item_id, text, hidden)
            for (item_id, text), hidden in zip(changed.items(), encoded, strict=True)
        }
        priced = {self.rows[item_id] for item_id, price in prices.items() if self._set_price(item_id, price)}
        self._facts.set((row, self.texts[row], self.prices.get(row)) for row in sorted(rows | priced))
        return sorted(
            rows | {self.rows[item_id] for item_id, given in vectors.items() if self._set_vectors(item_id, given)}
        )

    def _encode(self, texts: Sequence[str]) -> list[Tensor | None]:
        """Return activations of texts; each chunk is one allocation, because many small ones fragment memory."""
        encoded: list[Tensor | None] = []
        logged = time.monotonic()
        for start in range(0, len(texts), _CHUNK):
            hidden = self._cache.get(texts[start : start + _CHUNK])
            encoded += self._within_memory_limit(hidden)
            if time.monotonic() > logged + _LOG_SECONDS:
                logged = time.monotonic()
                log.info("catalogue_encoding", done=len(encoded), of=len(texts))
        return encoded

    def _within_memory_limit(self, hidden: list[Tensor]) -> list[Tensor | None]:
        """Return a chunk's activations [tokens, dim] each if the memory limit allows them, else None for each."""
        size = sum(states.nbytes for states in hidden)
        if self._max_hidden_bytes is not None and self._hidden_bytes + size > self._max_hidden_bytes:
            return [None] * len(hidden)
        self._hidden_bytes += size
        return list(torch.split(torch.cat(hidden), [len(states) for states in hidden]))

    def _set_text(self, item_id: str, text: str, hidden: Tensor | None) -> int:
        """Set an item's text and activations [tokens, dim], and return its row."""
        row = self.rows.setdefault(item_id, len(self.ids))
        if row == len(self.ids):
            self.ids.append(item_id)
            self.texts.append(text)
            self.hidden.append(hidden)
        elif (previous := self.hidden[row]) is not None:
            self._hidden_bytes -= previous.nbytes
        self.texts[row], self.hidden[row] = text, hidden
        return row

    def _set_vectors(self, item_id: str, vectors: ItemVectors) -> bool:
        """Set an item's vectors of other modalities, and return whether they changed."""
        row = self.rows[item_id]
        previous = self.modality_vectors.pop(row, {})
        if vectors:
            self.modality_vectors[row] = vectors
        return previous.keys() != vectors.keys() or not all(
            np.array_equal(previous[name], vectors[name]) for name in previous
        )

    def _set_price(self, item_id: str, price: float | None) -> bool:
        """Set an item's price, and return whether it changed."""
        row = self.rows[item_id]
        previous = self.prices.pop(row, None)
        if price is not None:
            self.prices[row] = price
        return previous != price

    def facts(self) -> ItemFacts:
        """Return prices and words of all items as of now."""
        return self._facts.facts()

    def vectors(self, suffix: Callable[[Sequence[Tensor]], Tensor], rows: Sequence[int]) -> Tensor:
        """Return unit text vectors [rows, dim] under an adapter.

        Args:
            suffix: function that maps activations [tokens, dim] of each text to vectors [texts, dim].
            rows: catalogue rows of the items.
        """
        vectors = torch.zeros(len(rows), self._cache.dim)  # filled in place, so that vectors are not held twice
        for start in range(0, len(rows), _CHUNK):
            hidden = self._activations(rows[start : start + _CHUNK])
            vectors[start : start + len(hidden)] = torch.nn.functional.normalize(suffix(hidden), dim=1)
        return vectors

    def _activations(self, rows: Sequence[int]) -> list[Tensor]:
        """Return activations [tokens, dim] of rows, from memory or from the cache."""
        missing = [row for row in rows if self.hidden[row] is None]
        cached = (
            dict(zip(missing, self._cache.get([self.texts[row] for row in missing]), strict=True)) if missing else {}
        )
        return [cached[row] if (hidden := self.hidden[row]) is None else hidden for row in rows]


def item_text(*, title: str, brand: str = "", category: str = "", description: str = "") -> str:
    """Return the text that an item is encoded from and searched by, cut to the encoder's limit.

    >>> item_text(title="Mug", brand="Acme", description="Blue.")
    'Mug. Acme. Blue.'
    """
    return ". ".join(part for part in (title, brand, category, description) if part)[:MAX_TEXT_CHARS]
