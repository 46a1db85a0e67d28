"""Versions that a scorer could not load, with the reason and the time of the next attempt."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from services.scorer.model_slot import Target

REMEMBERED = 1_024
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 60.0
_SHOWN = 3  # refused versions in one sentence


@dataclass(frozen=True, slots=True)
class Refusal:
    """One version that could not be loaded.

    Attributes:
        version: the adapter version.
        problem: the reason, for a person.
        pause_seconds: the time from the last attempt to the next.
        next_try: the time of the next attempt, monotonic seconds.
    """

    version: int
    problem: str
    pause_seconds: float
    next_try: float


class Refusals:
    """Remembers refused versions. Each is tried again after growing pauses, since a file may be repaired in place."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, int, str], Refusal] = {}
        self._lock = threading.Lock()

    def may_try(self, scenario: str, target: Target) -> bool:
        """Return whether a version is not refused or its pause is over."""
        with self._lock:
            refusal = self._refused.get(_key(scenario, target))
        return refusal is None or time.monotonic() >= refusal.next_try

    def add(self, scenario: str, target: Target, problem: str) -> bool:
        """Record a refusal. Returns True if the version or the reason is new."""
        key = _key(scenario, target)
        with self._lock:
            before = self._refused.pop(key, None)
            pause_seconds = (
                FIRST_PAUSE_SECONDS if before is None else min(2 * before.pause_seconds, LONGEST_PAUSE_SECONDS)
            )
            next_try = time.monotonic() + pause_seconds
            self._refused[key] = Refusal(target.version, problem, pause_seconds, next_try)
            while len(self._refused) > REMEMBERED:
                self._refused.pop(next(iter(self._refused)))
        return before is None or before.problem != problem

    def clear(self) -> None:
        """Forget all refusals, so that each version is tried again at once."""
        with self._lock:
            self._refused.clear()

    def remove(self, scenario: str, target: Target) -> None:
        """Forget the refusal of a version that has been loaded."""
        with self._lock:
            self._refused.pop(_key(scenario, target), None)

    def next_try(self, scenario: str, targets: Iterable[Target]) -> float | None:
        """Return the earliest next attempt among refused targets, monotonic seconds; None if none is refused."""
        with self._lock:
            refusals = [self._refused.get(_key(scenario, target)) for target in targets]
        return min((refusal.next_try for refusal in refusals if refusal is not None), default=None)

    def problems(self, scenario: str, unmet: Iterable[Target], served: int | None) -> list[str]:
        """Return sentences about refused versions: unmet targets, and versions between them and the one served.

        Args:
            scenario: the scenario of the versions.
            unmet: the targets that are not served.
            served: the stable version that is served; None if there is none.
        """
        with self._lock:
            refused = {key: refusal for key, refusal in self._refused.items() if key[0] == scenario}
        unmet = list(unmet)
        wanted = [refusal for target in unmet if (refusal := refused.get(_key(scenario, target))) is not None]
        highest = max((refusal.version for refusal in wanted), default=0)
        between = {
            refusal.version: refusal for refusal in refused.values() if (served or 0) < refusal.version < highest
        }
        shown = list(dict.fromkeys([*wanted, *(between[version] for version in sorted(between, reverse=True))]))
        sentences = [
            f"version {refusal.version} of {scenario!r} is refused: {refusal.problem}" for refusal in shown[:_SHOWN]
        ]
        return sentences + ([f"and {len(shown) - _SHOWN} older ones"] if len(shown) > _SHOWN else [])


def _key(scenario: str, target: Target) -> tuple[str, int, str]:
    return scenario, target.version, target.manifest.digest if target.manifest else ""
