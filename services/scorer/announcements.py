"""Announced versions and rollouts of the scenarios that are followed."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from peft_adapters.errors import BundleError, RolloutError
from peft_adapters.registry.manifest import Manifest, parse_manifest
from peft_adapters.registry.rollout import KEY_SUFFIX, Rollout, parse_rollout
from services.metrics.scorer import ScorerMetrics
from services.scorer.registry_status import RegistryStatus

log = structlog.get_logger(__name__)

MOST_PUBLISHED = 10_000  # names of scenarios remembered


@dataclass(frozen=True, slots=True)
class Announced:
    """The newest version and rollout of a scenario; None where none was announced."""

    latest: Manifest | None = None
    rollout: Rollout | None = None


class Announcements:
    """Holds the newest announcements until the worker looks; new rollouts are also passed on at once.

    Args:
        scenario: the first scenario to follow; announcements of scenarios that are not followed are dropped.
        metrics: counts unreadable announcements.
        on_rollout: called with every rollout that is newer than the one before, in the thread that received it.

    Attributes:
        status: the causes for which the registry cannot be read.
    """

    def __init__(
        self, scenario: str, metrics: ScorerMetrics, *, on_rollout: Callable[[Rollout], None] = lambda _: None
    ) -> None:
        self.status = RegistryStatus()
        self._metrics, self._on_rollout = metrics, on_rollout
        self._announced: dict[str, Announced] = {scenario: Announced()}
        self._published: set[str] = set()  # scenarios with any announcement, followed or not
        self._changed: dict[str, None] = {}  # scenarios in the order in which they changed
        self._condition = threading.Condition()

    def follow(self, scenario: str) -> None:
        """Keep announcements of a scenario from now on, and queue it for the worker."""
        with self._condition:
            self._announced.setdefault(scenario, Announced())
            self._queue(scenario)

    def drop(self, scenario: str) -> None:
        """Stop following a scenario."""
        with self._condition:
            self._announced.pop(scenario, None)
            self._changed.pop(scenario, None)
        self.status.drop(scenario)

    def is_published(self, scenario: str) -> bool:
        """Return whether anything was announced for a scenario, followed or not."""
        return scenario in self._published

    def followed(self) -> list[str]:
        """Return the scenarios that are followed."""
        with self._condition:
            return list(self._announced)

    def read_record(self, key: bytes | None, value: bytes | None) -> None:
        """Process a record of the topic of announcements."""
        name = (key or b"").decode(errors="replace")
        scenario = name.removesuffix(KEY_SUFFIX)
        if value is not None and len(self._published) < MOST_PUBLISHED:
            self._published.add(scenario)
        if scenario not in self._announced or value is None:
            return
        try:
            if name.endswith(KEY_SUFFIX):
                self.update_rollout(parse_rollout(value, scenario=scenario, source="announcement"))
            else:
                self.update_latest(parse_manifest(value, source="announcement"))
        except (BundleError, RolloutError) as error:
            self._metrics.adapter_refused()
            log.warning("announcement_refused", problem=str(error))

    def update_latest(self, manifest: Manifest, *, only_newer: bool = False) -> None:
        """Make a version the latest of its scenario.

        Args:
            manifest: the manifest of the version.
            only_newer: whether to ignore a version that is not above the latest: the topic may have overtaken what a
                look at the registry found.
        """
        with self._condition:
            before = self._announced.get(manifest.scenario)
            if before is None or (
                only_newer and before.latest is not None and before.latest.version >= manifest.version
            ):
                return
            self._announced[manifest.scenario] = replace(before, latest=manifest)
            self._published.add(manifest.scenario)
            self._queue(manifest.scenario)

    def update_rollout(self, rollout: Rollout) -> None:
        """Make a rollout the newest of its scenario, if it is, and pass it on."""
        with self._condition:
            before = self._announced.get(rollout.scenario)
            if before is None or (before.rollout is not None and order_key(before.rollout) >= order_key(rollout)):
                return
            self._announced[rollout.scenario] = replace(before, rollout=rollout)
            self._queue(rollout.scenario)
        self._on_rollout(rollout)

    def wait(self, timeout_seconds: float) -> str | None:
        """Wait for a scenario with a new announcement; returns None if none arrives in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._changed, timeout_seconds)
            scenario = next(iter(self._changed), None)
            if scenario is not None:
                del self._changed[scenario]
            return scenario

    def announced(self, scenario: str) -> Announced:
        """Return the newest version and rollout of a scenario."""
        with self._condition:
            return self._announced.get(scenario, Announced())

    def requeue(self, scenario: str) -> None:
        """Have the worker process a scenario again."""
        with self._condition:
            if scenario in self._announced:
                self._queue(scenario)

    def _queue(self, scenario: str) -> None:
        self._changed.setdefault(scenario)
        self._condition.notify_all()


def order_key(rollout: Rollout) -> tuple[int, int]:
    """Return a key that grows with every change of a rollout.

    The time breaks ties: a worker without write access that ended a canary for itself used the revision that the
    registry assigns next.
    """
    return rollout.revision, rollout.changed_at_ms
