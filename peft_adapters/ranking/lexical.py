"""Lexical search by BM25 (Robertson & Zaragoza 2009), with the library bm25s; misspelt words are bridged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import bm25s
import numpy as np

from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.spelling import Spelling
from peft_adapters.ranking.words import words

_MOST_BRIDGED = 8  # unknown words of a query; bounds the time of a text that nobody would type


class LexicalIndex:
    """An immutable BM25 index of texts in a fixed order.

    Args:
        texts: texts to index, one per row.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._rows = len(texts)
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
        self._vocabulary = vocabulary
        counts = Counter(token for text in ids for token in set(text))
        self._spelling = Spelling({word: counts[token] for word, token in vocabulary.items()})
        self._bm25: bm25s.BM25 | None = None
        if vocabulary:
            self._bm25 = bm25s.BM25()
            self._bm25.index((ids, vocabulary), show_progress=False)

    def __len__(self) -> int:
        """Return the number of texts."""
        return self._rows

    def scores(self, query: str) -> FloatArray:
        """Return the BM25 score [texts] of each text for a query; 0 for texts without any of its words.

        For a word that no text has, the nearest words of the texts count.
        """
        token_ids = [] if self._bm25 is None else self._bm25.get_tokens_ids(self._known_words(query))
        if self._bm25 is None or not token_ids:
            return np.zeros(self._rows, dtype=np.float32)
        scores: FloatArray = self._bm25.get_scores_from_ids(token_ids)
        return scores

    def _known_words(self, query: str) -> list[str]:
        """Return the words of a query that texts have, with others in place of those that none has."""
        known: list[str] = []
        bridged = 0
        for word in words(query):
            if word in self._vocabulary:
                known.append(word)
            elif bridged < _MOST_BRIDGED:
                bridged += 1
                known += self._spelling.known(word)
        return known
