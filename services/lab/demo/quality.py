"""Quality of answers: whether the shown items hold the next purchase, live and by the model that is never updated."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft_adapters.ranking.shoppers import History

CUTOFF = 20


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer, and the purchase after it.

    Attributes:
        live_rank: rank of the item in the live answer, from 1; None if it was not among the 20.
        context: the shopper's history at the time of the request.
        bought: row of the item bought.
    """

    live_rank: int | None
    context: History
    bought: int


@dataclass(slots=True)
class Tally:
    """Sums over judged answers."""

    judged: int = 0
    hits: int = 0
    gain: float = 0.0

    def add(self, rank: int | None) -> None:
        """Count an answer.

        Args:
            rank: rank of the item bought, from 1; None if it was not shown.
        """
        self.judged += 1
        if rank is not None and rank <= CUTOFF:
            self.hits += 1
            self.gain += 1 / math.log2(rank + 1)

    @property
    def hr20(self) -> float | None:
        """Return the share of answers whose first 20 items hold the item bought."""
        return self.hits / self.judged if self.judged else None

    @property
    def ndcg20(self) -> float | None:
        """Return the mean NDCG@20 of the answers."""
        return self.gain / self.judged if self.judged else None


class Quality:
    """Judges live answers, and the same requests by the model that is never updated, in batches.

    Args:
        never_updated: returns the ranks of the items bought, for several contexts at a time, by the initial model.
    """

    def __init__(self, never_updated: Callable[[Sequence[History], Sequence[int]], list[int]]) -> None:
        self.live = Tally()
        self.never_updated = Tally()
        self._rank = never_updated
        self._lock = threading.Lock()
        self._waiting: deque[Judgement] = deque()

    def add(self, judgement: Judgement) -> None:
        """Queue an answer to be judged; thread-safe."""
        with self._lock:
            self._waiting.append(judgement)

    def judge_waiting(self) -> None:
        """Judge the queued answers on both sides, so that both always count the same requests."""
        with self._lock:
            judgements, self._waiting = list(self._waiting), deque()
        if not judgements:
            return
        ranks = self._rank([j.context for j in judgements], [j.bought for j in judgements])
        for judgement, rank in zip(judgements, ranks, strict=True):
            self.live.add(judgement.live_rank)
            self.never_updated.add(rank)

    @property
    def lift(self) -> float | None:
        """Return HR@20 live over never updated; infinite if only the live model ever hit."""
        live, still = self.live.hr20, self.never_updated.hr20
        if live is None or still is None:
            return None
        return live / still if still else (math.inf if live else None)
