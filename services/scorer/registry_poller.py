"""Reads of the registry for scenarios without an announcement, and the schedule of retries."""

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
    """Reads the registry on behalf of the worker's thread, and requeues scenarios after failures.

    Args:
        bundles: reads the registry.
        announcements: receives what is found, and queues scenarios for the worker.
        pinned: the scenarios that must have a version: without one they are polled again.
    """

    def __init__(self, bundles: BundleSource, announcements: Announcements, *, pinned: Collection[str]) -> None:
        self._bundles, self._announcements, self._pinned = bundles, announcements, pinned
        self._status = announcements.status
        self._backoffs: dict[str, Iterator[float]] = {}  # seconds, of scenarios whose last read failed
        self._due: dict[str, float] = {}  # monotonic seconds, of scenarios with something left to load

    def poll(self, scenario: str) -> None:
        """Read the rollout and the latest version; a failure is recorded and the read is repeated after a pause."""
        part = "rollout"
        try:
            self._announcements.update_rollout(self._bundles.rollout(scenario))
            self._status.answered(scenario, part)
            part = "latest"
            latest = self._bundles.latest(scenario)
            if latest is None and scenario in self._pinned:
                self._status.failed(scenario, part, Cause(REGISTRY, self._bundles.explain_absence(scenario)))
                self.retry_later(scenario)
            else:
                self._status.answered(scenario, part)
        except (RegistryError, BundleError) as error:
            if self._status.failed(scenario, part, cause_of(error, scenario)):
                log.warning(
                    "registry_not_read", scenario=scenario, part=part, problem=str(error), retry="after a pause"
                )
            self.retry_later(scenario)
            latest = self._newest_readable(scenario) if part == "latest" else None
        if latest is not None:
            self._announcements.update_latest(latest, only_newer=True)

    def _newest_readable(self, scenario: str) -> Manifest | None:
        """Return the newest version with a readable manifest, if that of the latest is not readable."""
        try:
            return self._bundles.newest_readable(scenario)
        except RegistryError:
            return None  # the failure before it is recorded

    def retry_later(self, scenario: str, at: float | None = None) -> None:
        """Requeue a scenario at a time in monotonic seconds; None takes the next pause of its back-off."""
        if at is None:
            at = time.monotonic() + next(self._backoffs.setdefault(scenario, backoff_seconds()))
        self._due[scenario] = min(at, self._due.get(scenario, math.inf))

    def reset_backoff(self, scenario: str) -> None:
        """Start with short pauses again, because the registry has answered."""
        self._backoffs.pop(scenario, None)

    def requeue_due(self) -> None:
        """Queue the scenarios whose pause is over."""
        now = time.monotonic()
        for scenario in [scenario for scenario, at in self._due.items() if at <= now]:
            del self._due[scenario]
            self._announcements.requeue(scenario)

    def seconds_until_next(self) -> float:
        """Return the time until the first pause is over; infinity if there is none."""
        return max(0.0, min(self._due.values(), default=math.inf) - time.monotonic())
