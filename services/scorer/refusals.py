"""The versions that a scorer could not load: why, and when each is tried again."""

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
        version: Of the adapter.
        problem: Why, for a person.
        pause_seconds: From the last try to the next.
        next_try: When it is tried again, monotonic seconds.
    """

    version: int
    problem: str
    pause_seconds: float
    next_try: float


class Refusals:
    """Remembers refused versions. Each is tried again after a growing pause, since a file may be repaired in place."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, int, str], Refusal] = {}
        self._lock = threading.Lock()

    def may_try(self, scenario: str, target: Target) -> bool:
        """Check that a version was not refused a moment ago."""
        with self._lock:
            refusal = self._refused.get(_key(scenario, target))
        return refusal is None or time.monotonic() >= refusal.next_try

    def add(self, scenario: str, target: Target, problem: str) -> bool:
        """Record a refusal; returns whether the version, or the reason, is a new one."""
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

    def loaded(self, scenario: str, target: Target) -> None:
        """Forget the refusal of a version that was loaded after all."""
        with self._lock:
            self._refused.pop(_key(scenario, target), None)

    def next_try(self, scenario: str, targets: Iterable[Target]) -> float | None:
        """When the first of some refused targets is tried again, monotonic seconds; None when none is refused."""
        with self._lock:
            found = [self._refused.get(_key(scenario, target)) for target in targets]
        return min((refusal.next_try for refusal in found if refusal is not None), default=None)

    def problems(self, scenario: str, unmet: Iterable[Target], served: int | None) -> list[str]:
        """Sentences about the refused versions among some targets, and between them and the version that is served.

        Args:
            scenario: Of which ranking.
            unmet: What should be served and is not.
            served: The version that is; None while there is none.
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
        sentences = [f"version {own.version} of {scenario!r} is refused: {own.problem}" for own in shown[:_SHOWN]]
        return sentences + ([f"and {len(shown) - _SHOWN} older ones"] if len(shown) > _SHOWN else [])


def _key(scenario: str, target: Target) -> tuple[str, int, str]:
    return scenario, target.version, target.manifest.digest if target.manifest else ""
