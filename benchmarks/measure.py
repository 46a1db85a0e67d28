"""Two ways to do the same, timed in turn: what else the machine does then hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """What a scenario measured.

    Attributes:
        unit: what `value` is.
        value: median over rounds of the ratio of the two rates.
        target: what `value` must reach; None where nothing is promised.
        settings: what the figures depend on.
        rounds: one dictionary of figures a round, in the order run.
    """

    unit: str
    value: float
    target: float | None
    settings: dict[str, Any]
    rounds: list[dict[str, float]]

    def medians(self) -> dict[str, float]:
        """Each figure's median over the rounds."""
        return {name: median(round_[name] for round_ in self.rounds) for name in self.rounds[0]}

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "unit": self.unit,
            "value": self.value,
            "target": self.target,
            "met": None if self.target is None else self.value >= self.target,
            "settings": self.settings,
            "medians": self.medians(),
            "rounds": self.rounds,
        }


def in_turn(
    first: Callable[[], int], second: Callable[[], int], *, rounds: int, names: tuple[str, str]
) -> list[dict[str, float]]:
    """Rates of two functions that give how many things they did, and the ratio first over second.

    Both run once untimed. Every other round begins with the second, so that neither always runs on the warmer cache.
    """
    first(), second()
    measured = []
    for number in range(rounds):
        order = [(names[0], first), (names[1], second)]
        rates = {
            name: events_per_second(function) for name, function in (order if number % 2 == 0 else reversed(order))
        }
        measured.append({name: rates[name] for name in names} | {"ratio": rates[names[0]] / rates[names[1]]})
    return measured


def events_per_second(function: Callable[[], int]) -> float:
    """Rate of a function that gives how many things it did."""
    began = time.perf_counter()
    done = function()
    return done / (time.perf_counter() - began)
