"""Words of an index for a word that it does not have: misspelt ones, and compounds of two."""

from __future__ import annotations

from collections.abc import Mapping

from rapidfuzz import process
from rapidfuzz.distance import OSA

_MOST_WORDS = 3  # in place of one
_LONG = 8  # characters from which two edits are a misspelling; one from _SHORT
_SHORT = 4
_LEAST_PART = 3  # characters of a part of a compound
_KEPT = 4_096  # words whose replacements are kept


class Spelling:
    """Nearest words by optimal string alignment: insertions, deletions, replacements and swaps of neighbours.

    One edit is bridged from 4 characters on and two from 8 on. Words with a digit are never replaced: a model number
    that is nearly the same is another product.

    Args:
        counts: number of texts with each word of the index.

    >>> spelling = Spelling({"faucet": 9, "dish": 5, "washer": 4, "400": 1})
    >>> [spelling.known(word) for word in ("facuet", "dishwasher", "4000", "lamp")]
    [['faucet'], ['dish', 'washer'], [], []]
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._by_length: dict[int, list[str]] = {}
        for word in counts:
            self._by_length.setdefault(len(word), []).append(word)
        self._found: dict[str, list[str]] = {}

    def known(self, word: str) -> list[str]:
        """Return words of the index for one that it lacks: the nearest ones, or two that it is made of; or nothing."""
        found = self._found.get(word)
        if found is None:
            found = self._nearest(word) or self._parts(word)
            if len(self._found) >= _KEPT:
                self._found.clear()  # another thread may do so too, hence the single read above
            self._found[word] = found
        return found

    def _nearest(self, word: str) -> list[str]:
        if len(word) < _SHORT or any(character.isdigit() for character in word):
            return []
        edits = 1 if len(word) < _LONG else 2
        choices = [
            known
            for length in range(len(word) - edits, len(word) + edits + 1)
            for known in self._by_length.get(length, ())
        ]
        found = process.extract(word, choices, scorer=OSA.distance, score_cutoff=edits, limit=None)
        least = min((distance for _, distance, _ in found), default=0)
        nearest = (known for known, distance, _ in found if distance == least)
        return sorted(nearest, key=lambda known: (-self._counts[known], known))[:_MOST_WORDS]

    def _parts(self, word: str) -> list[str]:
        """Return the two words that a compound is made of, those that more texts have first."""
        cuts = range(_LEAST_PART, len(word) - _LEAST_PART + 1)
        pairs = [(word[:cut], word[cut:]) for cut in cuts]
        known = [pair for pair in pairs if all(part in self._counts for part in pair)]
        return list(max(known, key=lambda pair: min(self._counts[part] for part in pair))) if known else []
