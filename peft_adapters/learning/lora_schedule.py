"""Schedule of LoRA: its steps and snapshots as functions of the evidence there was to learn from."""

from __future__ import annotations

import math
from typing import NamedTuple

# Snapshots while searches are learnt: every few steps at first, then whenever the steps have grown by a quarter.
_REFRESH_STEPS, _REFRESHES_OF_ONE_SIZE, _REFRESH_GROWTH = 4, 4, 1.25


class Due(NamedTuple):
    """Actions due after a micro-batch.

    Attributes:
        step: whether LoRA takes a step.
        refresh: whether a snapshot of the weights is taken.
    """

    step: bool
    refresh: bool


NOTHING_DUE = Due(False, False)


class Schedule:
    """The number of steps due after some evidence: frequent while items or queries are new, then ever rarer.

    Args:
        every: evidence of the first step, in events.
        slows: number of steps after which a step needs e times as much.

    Attributes:
        frequency: share of the steps that are taken, 0 to 1.

    >>> schedule = Schedule(every=96, slows=100)
    >>> [schedule.steps(evidence) for evidence in (96, 97, 9_600, 96_000)]
    [0, 1, 69, 239]
    """

    def __init__(self, *, every: float, slows: float) -> None:
        self.every, self._slows = every, slows
        self.frequency = 1.0

    def steps(self, evidence: float) -> int:
        """Return the number of steps due so far."""
        return int(self.frequency * self._slows * math.log1p(evidence / (self._slows * self.every)))

    def evidence_at(self, steps: int) -> float:
        """Return the evidence at which a step is due, the inverse of `steps`."""
        if self.frequency <= 0:
            return math.inf
        return self._slows * self.every * math.expm1(steps / (self.frequency * self._slows))


def refreshes(steps: int) -> int:
    """Return the number of snapshots due after some steps on searches: the more steps, the less one of them changes.

    >>> [refreshes(steps) for steps in (3, 4, 15, 16, 24, 96)]
    [0, 1, 3, 4, 5, 12]
    """
    first, times = _REFRESH_STEPS, _REFRESHES_OF_ONE_SIZE
    if steps < first * times:
        return steps // first
    return times + int(math.log(steps / (first * times)) / math.log(_REFRESH_GROWTH))
