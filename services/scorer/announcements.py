"""What was announced of the scenarios that are followed: the newest version, and the newest rollout."""

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
class News:
    """The newest that was heard of a scenario; None where nothing was."""

    latest: Manifest | None = None
    rollout: Rollout | None = None


class Announcements:
    """Holds what is newest until the worker looks; rollouts are told on at once.

    Args:
        scenario: The first that is followed; of others nothing is kept.
        metrics: Where an unreadable announcement is counted.

    Attributes:
        status: What keeps those who read the registry from it.
        on_rollout: Called with every rollout that is newer than the one before, by whoever brings it.
    """

    def __init__(self, scenario: str, metrics: ScorerMetrics) -> None:
        self.on_rollout: Callable[[Rollout], None] = lambda _: None
        self.status = RegistryStatus()
        self._metrics = metrics
        self._news: dict[str, News] = {scenario: News()}
        self._published: set[str] = set()  # scenarios of which anything was ever heard
        self._changed: dict[str, None] = {}  # scenarios, in the order in which they changed
        self._there = threading.Condition()

    def follow(self, scenario: str) -> None:
        """Keep what is heard of a scenario from now on, and have the worker look at it."""
        with self._there:
            self._news.setdefault(scenario, News())
            self._mark(scenario)

    def drop(self, scenario: str) -> None:
        """Keep no more of a scenario."""
        with self._there:
            self._news.pop(scenario, None)
            self._changed.pop(scenario, None)
        self.status.drop(scenario)

    def is_published(self, scenario: str) -> bool:
        """Whether anything was heard of a scenario, be it followed or not."""
        return scenario in self._published

    def followed(self) -> list[str]:
        """The scenarios of which it is kept what is heard."""
        with self._there:
            return list(self._news)

    def hear(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of the topic."""
        name = (key or b"").decode(errors="replace")
        scenario = name.removesuffix(KEY_SUFFIX)
        if value is not None and len(self._published) < MOST_PUBLISHED:
            self._published.add(scenario)
        if scenario not in self._news or value is None:
            return
        try:
            if name.endswith(KEY_SUFFIX):
                self.offer_rollout(parse_rollout(value, scenario=scenario, source="announcement"))
            else:
                self.offer(parse_manifest(value, source="announcement"))
        except (BundleError, RolloutError) as error:
            self._metrics.adapter_refused()
            log.warning("announcement_refused", problem=str(error))

    def offer(self, manifest: Manifest, *, only_newer: bool = False) -> None:
        """Make a manifest the newest.

        Args:
            manifest: Of the version.
            only_newer: Whether a version below the newest is passed over: what a look at the registry finds may have
                been overtaken by the topic.
        """
        with self._there:
            news = self._news.get(manifest.scenario)
            if news is None or (only_newer and news.latest is not None and news.latest.version >= manifest.version):
                return
            self._news[manifest.scenario] = replace(news, latest=manifest)
            self._published.add(manifest.scenario)
            self._mark(manifest.scenario)

    def offer_rollout(self, rollout: Rollout) -> None:
        """Make a rollout the newest, if it is, and tell it on."""
        with self._there:
            news = self._news.get(rollout.scenario)
            if news is None or (news.rollout is not None and standing(news.rollout) >= standing(rollout)):
                return
            self._news[rollout.scenario] = replace(news, rollout=rollout)
            self._mark(rollout.scenario)
        self.on_rollout(rollout)

    def wait(self, timeout_seconds: float) -> str | None:
        """A scenario of which something new was heard; None when nothing is in time."""
        with self._there:
            self._there.wait_for(lambda: self._changed, timeout_seconds)
            scenario = next(iter(self._changed), None)
            if scenario is not None:
                del self._changed[scenario]
            return scenario

    def news(self, scenario: str) -> News:
        """The newest of a scenario."""
        with self._there:
            return self._news.get(scenario, News())

    def put_back(self, scenario: str) -> None:
        """Have the worker look at a scenario again."""
        with self._there:
            if scenario in self._news:
                self._mark(scenario)

    def _mark(self, scenario: str) -> None:
        self._changed.setdefault(scenario)
        self._there.notify_all()


def standing(rollout: Rollout) -> tuple[int, int]:
    """What grows with every change of a rollout.

    Where a worker that cannot write has changed it for itself, the registry's next one has the same revision.
    """
    return rollout.revision, rollout.changed_at_ms
