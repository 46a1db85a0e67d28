"""Prices of items and words of their texts, in arrays that compiled loops read.

Both follow from the catalogue, as texts do: whoever has read the same events of items knows the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.words import words

WORDS = 24  # distinct words kept of an item's text, the first ones: a text begins with the title
_FIRST_CAPACITY = 1_024

WordIds = npt.NDArray[np.int32]


class ItemFacts(NamedTuple):
    """Prices and words of items; the arrays never change.

    Attributes:
        log_prices: [items] logarithm of the price, NaN where it is unknown.
        words: [items, 24] ids of the words of each text, -1 for padding.
        squared_idf: [words] squared inverse document frequency of each word in the catalogue.
    """

    log_prices: FloatArray
    words: WordIds
    squared_idf: FloatArray

    @classmethod
    def unknown(cls, size: int) -> ItemFacts:
        """Return facts of `size` items of which nothing is known."""
        none = np.full((size, WORDS), -1, dtype=np.int32)
        return cls(np.full(size, np.nan, dtype=np.float32), none, np.zeros(0, dtype=np.float32))

    def of_rows(self, rows: IntArray) -> ItemFacts:
        """Return the facts [rows] of some rows; nothing is known of a row of -1."""
        is_known = rows >= 0
        facts = ItemFacts.unknown(len(rows))._replace(squared_idf=self.squared_idf)
        facts.log_prices[is_known] = self.log_prices[rows[is_known]]
        facts.words[is_known] = self.words[rows[is_known]]
        return facts


class ItemFactsTable:
    """Facts of a growing and changing catalogue."""

    def __init__(self) -> None:
        self._size = 0
        self._vocabulary: dict[str, int] = {}
        self._document_counts = np.zeros(_FIRST_CAPACITY, dtype=np.int64)  # [words or more] items with each word
        self._log_prices, self._words, _ = ItemFacts.unknown(_FIRST_CAPACITY)
        self._is_shared = False  # whether `facts` has given the arrays away

    def set(self, changed: Iterable[tuple[int, str, float | None]]) -> None:
        """Set text and price of some items, given as row, text and price; rows are new or known."""
        if self._is_shared:
            self._log_prices, self._words, self._is_shared = self._log_prices.copy(), self._words.copy(), False
        for row, text, price in changed:
            self._grow(row + 1)
            ids = self._ids(text)
            before = self._words[row]
            self._document_counts[before[before >= 0]] -= 1
            self._document_counts[ids] += 1
            before[:] = -1
            before[: len(ids)] = ids
            self._log_prices[row] = math.log(price) if price else math.nan

    def facts(self) -> ItemFacts:
        """Return the present facts; later changes leave them as they are."""
        self._is_shared = True
        counts = self._document_counts[: len(self._vocabulary)]
        idf = np.log(self._size / np.maximum(counts, 1))
        return ItemFacts(self._log_prices[: self._size], self._words[: self._size], np.square(idf).astype(np.float32))

    def _ids(self, text: str) -> list[int]:
        """Return the ids of the first distinct words of a text."""
        ids = [
            self._vocabulary.setdefault(word, len(self._vocabulary)) for word in [*dict.fromkeys(words(text))][:WORDS]
        ]
        if len(self._vocabulary) > len(self._document_counts):
            self._document_counts = np.pad(self._document_counts, (0, len(self._document_counts)))
        return ids

    def _grow(self, size: int) -> None:
        missing = size - len(self._log_prices)
        self._size = max(self._size, size)
        if missing > 0:
            more = ItemFacts.unknown(max(missing, len(self._log_prices)))
            self._log_prices = np.concatenate([self._log_prices, more.log_prices])
            self._words = np.concatenate([self._words, more.words])
