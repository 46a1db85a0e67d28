"""Asks the registry for what nobody has announced, and notes when a scenario is to be looked at again."""

import math
import time
from collections.abc import Collection, Iterator

import structlog

from peft_adapters.errors import BundleError, RegistryError
from peft_adapters.registry.manifest import Manifest
from services.scorer.announcements import Announcements
from services.scorer.bundles import BundleSource
from services.scorer.registry_status import REGISTRY, Cause, cause_of
from streams.connection import backoff_seconds

log = structlog.get_logger(__name__)


class RegistryPoller:
    """Belongs to the worker's thread.

    Args:
        bundles: Reads the registry.
        announcements: Takes what is found, and brings scenarios back to the worker.
        pinned: Scenarios that must have a version: without one they are looked at again.
    """

    def __init__(self, bundles: BundleSource, announcements: Announcements, *, pinned: Collection[str]) -> None:
        self._bundles, self._announcements, self._pinned = bundles, announcements, pinned
        self._status = announcements.status
        self._pauses: dict[str, Iterator[float]] = {}  # of scenarios whose registry does not answer
        self._next_look: dict[str, float] = {}  # monotonic seconds, of scenarios with something left to load

    def ask(self, scenario: str) -> None:
        """Ask for the rollout and the latest version; what fails is recorded, and asked again after a pause."""
        part = "rollout"
        try:
            self._announcements.offer_rollout(self._bundles.rollout(scenario))
            self._status.answered(scenario, part)
            part = "latest"
            latest = self._bundles.latest(scenario)
            if latest is None and scenario in self._pinned:
                self._status.failed(scenario, part, Cause(REGISTRY, self._bundles.explain_absence(scenario)))
                self.later(scenario)
            else:
                self._status.answered(scenario, part)
        except (RegistryError, BundleError) as error:
            if self._status.failed(scenario, part, cause_of(error, scenario)):
                log.warning(
                    "registry_not_read", scenario=scenario, part=part, problem=str(error), retry="after a pause"
                )
            self.later(scenario)
            latest = self._newest_readable(scenario) if part == "latest" else None
        if latest is not None:
            self._announcements.offer(latest, only_newer=True)

    def _newest_readable(self, scenario: str) -> Manifest | None:
        """The newest version whose manifest can be read, where that of the latest cannot."""
        try:
            return self._bundles.newest_readable(scenario)
        except RegistryError:
            return None  # recorded by the failure before it

    def later(self, scenario: str, at: float | None = None) -> None:
        """Have a scenario looked at again at a time in monotonic seconds, or after the next pause."""
        if at is None:
            at = time.monotonic() + next(self._pauses.setdefault(scenario, backoff_seconds()))
        self._next_look[scenario] = min(at, self._next_look.get(scenario, math.inf))

    def loaded(self, scenario: str) -> None:
        """Begin with short pauses again: the registry has answered."""
        self._pauses.pop(scenario, None)

    def look_again(self) -> None:
        """Bring those scenarios back to the worker whose pause is over."""
        now = time.monotonic()
        for scenario in [scenario for scenario, at in self._next_look.items() if at <= now]:
            del self._next_look[scenario]
            self._announcements.put_back(scenario)

    def seconds_until_next(self) -> float:
        """Time until the first pause is over; infinite when there is none."""
        return max(0.0, min(self._next_look.values(), default=math.inf) - time.monotonic())
