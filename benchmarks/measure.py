"""Measurement: the figures of a scenario, and the timing of two functions that alternate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from services.data.digests import digests

DATA_FILES = ("items.csv.gz", "events.csv.gz")


class MissingInputError(Exception):
    """A scenario lacks an input; the message names the option that provides it."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one scenario.

    Attributes:
        unit: the unit of `value`, in words.
        value: the scenario's main figure; higher is better.
        target: the least `value` that meets the target; None where there is no target.
        settings: all settings that the figures depend on.
        rounds: the figures of each round, in the order run; None where a figure has no value.
    """

    unit: str
    value: float
    target: float | None
    settings: dict[str, Any]
    rounds: Sequence[Mapping[str, Any]]

    def medians(self) -> dict[str, float | None]:
        """Return the median of each figure over the rounds that have it."""
        figures: dict[str, float | None] = {}
        for name in self.rounds[0]:
            values = [value for round_ in self.rounds if (value := round_[name]) is not None]
            figures[name] = median(values) if values else None
        return figures

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return {
            "unit": self.unit,
            "value": self.value,
            "target": self.target,
            "met": None if self.target is None else self.value >= self.target,
            "settings": self.settings,
            "medians": self.medians(),
            "rounds": self.rounds,
        }


def data_settings(data: Path) -> dict[str, Any]:
    """Return the name of a data directory and the SHA-256 digests of its files, for `Measurement.settings`."""
    return {"data": data.name, "data_sha256": digests(data / name for name in DATA_FILES)}


def alternate(
    first: Callable[[], int], second: Callable[[], int], *, rounds: int, names: tuple[str, str]
) -> list[dict[str, float]]:
    """Time two functions that alternate, so that other load on the machine affects both alike.

    Both run once untimed. Every other round begins with the second, so that neither always runs on the warmer cache.

    Args:
        first: a function that returns how many events it processed.
        second: the function to compare it with.
        rounds: how often each is timed.
        names: the names of the two rates in the result.

    Returns:
        For each round the two rates in events per second, and their `ratio` (first over second).
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
    """Return the rate of a function that returns how many events it processed."""
    began = time.perf_counter()
    done = function()
    return done / (time.perf_counter() - began)
