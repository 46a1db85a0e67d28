"""The newest event ids, for deduplication, in a fixed amount of memory.

A set and a deque of 400,000 digests take about 40 MB, which a process reaches an hour after its start. Here a ring
buffer keeps the digests in order, and an open-addressing table with linear probing finds them: 12 MB from the start.
Deletion shifts later entries back instead of leaving marks (Knuth, The Art of Computer Programming, vol. 3, 6.4,
algorithm R).
"""

from array import array
from collections.abc import Iterable

_EMPTY = 0


class RecentIds:
    """A set of 64-bit digests that forgets the oldest beyond a limit.

    Args:
        limit: the number of digests that are remembered.

    >>> ids = RecentIds(2)
    >>> [ids.add(digest) for digest in (7, 8, 7, 9, 7)]
    [True, True, False, True, True]
    """

    def __init__(self, limit: int) -> None:
        size = 1 << (2 * limit - 1).bit_length()  # at most half full
        self._mask = size - 1
        self._table = array("Q", bytes(8 * size))
        self._ring = array("Q", bytes(8 * limit))
        self._next = 0  # next slot of the ring buffer

    def add(self, digest: int) -> bool:
        """Remember a digest; return False if it was remembered already.

        Args:
            digest: a number from 0 to 2**64 - 1.
        """
        digest = digest or 1  # 0 marks an empty slot
        table, mask = self._table, self._mask
        place = digest & mask
        while (entry := table[place]) != _EMPTY:
            if entry == digest:
                return False
            place = (place + 1) & mask
        table[place] = digest
        oldest = self._ring[self._next]
        self._ring[self._next] = digest
        self._next = (self._next + 1) % len(self._ring)
        if oldest != _EMPTY:
            self._remove(oldest)
        return True

    def update(self, digests: Iterable[int]) -> None:
        """Remember digests, the oldest first."""
        for digest in digests:
            self.add(digest)

    def _remove(self, digest: int) -> None:
        table, mask = self._table, self._mask
        hole = digest & mask
        while table[hole] != digest:
            hole = (hole + 1) & mask
        place = hole
        while True:
            table[hole] = _EMPTY
            while True:
                place = (place + 1) & mask
                moved = table[place]
                if moved == _EMPTY:
                    return
                home = moved & mask
                # It may move into the hole unless its home slot lies cyclically between the hole and its place.
                if (place - home) & mask >= (place - hole) & mask:
                    break
            table[hole] = moved
            hole = place
