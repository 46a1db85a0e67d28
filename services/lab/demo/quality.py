"""How well what was shown foretold what was bought: the live model beside the one never updated."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CUTOFF = 20

Context = tuple[list[int], list[int]]  # rows of a shopper's items, newest first, and their ages in sessions


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer, and what was bought after it.

    Attributes:
        live_rank: Place of the item in the live answer, from 1; None when it was not among the 20.
        context: What the shopper had done.
        bought: Row of the item.
    """

    live_rank: int | None
    context: Context
    bought: int


@dataclass(slots=True)
class Tally:
    """Sums over judged answers."""

    judged: int = 0
    hits: int = 0
    gain: float = 0.0

    def add(self, rank: int | None) -> None:
        """Counts one answer.

        Args:
            rank: Place of what was bought, from 1; None when it is far down.
        """
        self.judged += 1
        if rank is not None and rank <= CUTOFF:
            self.hits += 1
            self.gain += 1 / math.log2(rank + 1)

    @property
    def hr20(self) -> float | None:
        """Share of answers whose first 20 held what was bought."""
        return self.hits / self.judged if self.judged else None

    @property
    def ndcg20(self) -> float | None:
        """The same, with the higher places counting more."""
        return self.gain / self.judged if self.judged else None


class Quality:
    """Judges live answers at once, and the same requests by the model never updated whenever `settle` is called.

    Args:
        never_updated: Ranks what was bought, for some contexts at a time, by the model as it was at the start.
    """

    def __init__(self, never_updated: Callable[[Sequence[Context], Sequence[int]], list[int]]) -> None:
        self.live = Tally()
        self.never_updated = Tally()
        self._rank = never_updated
        self._lock = threading.Lock()
        self._unsettled: deque[Judgement] = deque()

    def add(self, judgement: Judgement) -> None:
        """Takes in one answer; called from any thread."""
        with self._lock:
            self._unsettled.append(judgement)

    def settle(self) -> None:
        """Counts what came in since, on both sides, so that both are always about the same requests."""
        with self._lock:
            judgements, self._unsettled = list(self._unsettled), deque()
        if not judgements:
            return
        ranks = self._rank([j.context for j in judgements], [j.bought for j in judgements])
        for judgement, rank in zip(judgements, ranks, strict=True):
            self.live.add(judgement.live_rank)
            self.never_updated.add(rank)

    @property
    def lift(self) -> float | None:
        """HR@20 live over never updated; infinite when only the live one ever hit."""
        live, still = self.live.hr20, self.never_updated.hr20
        if live is None or still is None:
            return None
        return live / still if still else (math.inf if live else None)
