"""Announced adapters: only the newest one counts."""

import threading

import structlog

from peft_adapters.errors import BundleError
from peft_adapters.manifest import Manifest, parse_manifest
from services.metrics import ScorerMetrics

log = structlog.get_logger(__name__)


class Announcements:
    """Holds the newest manifest announced for a scenario until the worker takes it.

    Args:
        scenario: Others are passed over.
        metrics: Where an unreadable announcement is counted.
    """

    def __init__(self, scenario: str, metrics: ScorerMetrics) -> None:
        self._scenario, self._metrics = scenario, metrics
        self._newest: Manifest | None = None
        self._there = threading.Condition()

    def hear(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of the topic."""
        if key != self._scenario.encode() or value is None:
            return
        try:
            manifest = parse_manifest(value, source="announcement")
        except BundleError as error:
            self._metrics.swaps.labels("refused").inc()
            log.warning("announcement_refused", problem=str(error))
            return
        self.offer(manifest)

    def offer(self, manifest: Manifest) -> None:
        """Make a manifest the newest."""
        with self._there:
            self._newest = manifest
            self._there.notify_all()

    def wait(self, timeout_seconds: float) -> Manifest | None:
        """Take the newest manifest, once there is one that was not taken; None when none comes in time."""
        with self._there:
            self._there.wait_for(lambda: self._newest is not None, timeout_seconds)
            manifest, self._newest = self._newest, None
            return manifest

    def put_back(self, manifest: Manifest) -> None:
        """Have another try at a manifest later, unless a newer one has come meanwhile."""
        with self._there:
            self._newest = self._newest or manifest
