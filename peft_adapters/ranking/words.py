"""Words of texts, for lexical search and for the similarity of titles."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case.

    >>> words("Blue-glass MUG, 350 ml")
    ['blue', 'glass', 'mug', '350', 'ml']
    """
    return _WORD.findall(text.casefold())
