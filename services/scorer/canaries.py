"""Comparison of a canary's click-through with the stable version's, and the automatic end of a worse canary.

Every worker reads all lists and clicks, whichever worker answered, so that all reach the same result without talking to
each other. Nothing is read while no canary runs.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing

import structlog

from peft_adapters.registry.rollout import CANARY, STABLE, Rollout
from services.metrics.canaries import CanaryMetrics
from services.scorer.deployment import Deployment, in_canary
from services.scorer.sequential import CanaryTest, Tally
from services.scorer.serving_table import ServingTable
from services.settings.scorer import CanarySettings
from streams.connection import KafkaConnection, backoff_seconds
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetter
from streams.decode import decode
from streams.errors import HeadwaterStreamError
from streams.events import Click, Impression
from streams.offsets import Offsets
from streams.record import Record
from streams.topics import Topics

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.5
MAX_RECORDS = 1_000
RECENT_LISTS = 100_000


class CanaryMonitor:
    """Reads lists and clicks while a canary runs, and judges it.

    Args:
        connection: the connection to Kafka.
        topics: the names of the topics.
        table: the models that are served.
        pseudonymise: replaces the ids of users in events.
        settings: the criteria for a worse canary.
        metrics: shows the trials.
        end: called with the rollout and the reason, for a worse canary with automatic rollback.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        table: ServingTable,
        pseudonymise: Callable[[str], str],
        settings: CanarySettings,
        metrics: CanaryMetrics,
        end: Callable[[Rollout, str], None],
    ) -> None:
        self._connection, self._topics, self._table = connection, topics, table
        self._pseudonymise, self._settings, self._metrics, self._end = pseudonymise, settings, metrics, end
        self._trials: dict[str, Trial] = {}
        self._positions: Offsets | None = None  # None: from the end of the log
        self._topic_ids: dict[str, str] = {}  # the logs that the positions belong to
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Watch until stopped; failures are retried."""
        pauses, known = backoff_seconds(), None
        while not self._stop.wait(CHECK_SECONDS):
            if not self.update_trials():
                self._positions, self._topic_ids = None, {}
                continue
            try:
                self._read()
                pauses, known = backoff_seconds(), None
            except HeadwaterStreamError as error:
                if str(error) != known:
                    log.warning("canary_not_watched", problem=str(error), retry="until the log can be read")
                known = str(error)
                self._stop.wait(next(pauses))
            except Exception:  # a bug of ours must not stop the answers
                log.exception("canary_watch_failed")
                self._stop.wait(next(pauses))

    def update_trials(self) -> bool:
        """Start and end trials as canaries start and end. Returns whether any is running."""
        deployments = self._table.deployments()
        running = {name: deployment for name, deployment in deployments.items() if deployment.canary is not None}
        for name in self._trials.keys() - running.keys():
            del self._trials[name]
            self._metrics.trial_ended(name)
        for name, deployment in running.items():
            trial = self._trials.get(name)
            if trial is None or not trial.continues(deployment):
                self._trials[name] = Trial(deployment, self._settings)
                log.info("canary_watched", scenario=name, version=deployment.models[CANARY].version)
            else:
                trial.deployment = deployment
        return bool(running)

    def count(self, event: Impression | Click) -> None:
        """Count a list or a click."""
        trial = self._trials.get(event.scenario)
        if trial is None:
            return
        if isinstance(event, Click):
            trial.clicked(event)
        else:
            trial.shown(event, self._pseudonymise(event.user_id))

    def judge(self) -> None:
        """Show the state of each trial, and end a worse canary that has automatic rollback."""
        for name, trial in list(self._trials.items()):
            test, rollout = trial.test, trial.deployment.rollout
            test.update()
            for arm, tally in ((STABLE, test.stable), (CANARY, test.canary)):
                self._metrics.show_arm(name, arm, lists=tally.shown, click_through=tally.click_through)
            self._metrics.show_p_value(name, test.p_value)
            if not test.is_worse or trial.is_reported:
                continue
            trial.is_reported = True
            ends = rollout.canary is not None and rollout.canary.auto_rollback
            log.warning("canary_is_worse", scenario=name, why=trial.verdict(), ends=ends)
            if ends:
                self._metrics.canary_rolled_back(name)
                self._end(rollout, trial.verdict())

    def _read(self) -> None:
        topics = list(dict.fromkeys((self._topics.impressions, self._topics.clicks, *self._topics.dialects)))
        with closing(
            PartitionConsumer(self._connection, topics, start=self._positions or "latest", topic_ids=self._topic_ids)
        ) as consumer:
            while not self._stop.is_set() and self.update_trials():
                for record in consumer.poll(CHECK_SECONDS, MAX_RECORDS):
                    self._count_record(record)
                self._positions, self._topic_ids = consumer.positions(), consumer.topic_ids()
                self.judge()

    def _count_record(self, record: Record) -> None:
        decoded = decode(record, self._topics)
        if isinstance(decoded, DeadLetter):
            return  # the updater reports it
        for event in decoded:
            if isinstance(event, Impression | Click):
                self.count(event)


class Trial:
    """One canary compared with its stable version.

    Args:
        deployment: the deployment at the start of the trial.
        settings: the criteria for a worse canary.

    Attributes:
        deployment: the deployment now.
        test: the sequential test between the two arms.
        is_reported: whether the canary was reported as worse.
    """

    def __init__(self, deployment: Deployment, settings: CanarySettings) -> None:
        self.deployment, self.test, self.is_reported = deployment, CanaryTest(settings), False
        self._recent = RecentLists(RECENT_LISTS)

    def continues(self, deployment: Deployment) -> bool:
        """Return whether a deployment compares the same two versions; a change of the share continues the trial."""
        before, after = self.deployment.rollout, deployment.rollout
        versions = [rollout.canary.version if rollout.canary else None for rollout in (before, after)]
        return before.stable_version == after.stable_version and versions[0] == versions[1]

    def shown(self, event: Impression, shopper: str) -> None:
        """Count a list for the arm that answered it."""
        arm = self._arm(event, shopper)
        if arm is None:
            return
        new, clicked = self._recent.shown(event.request_id, arm, shopper)
        if new:
            self._tally(arm).add(shopper, shown=1, clicked=int(clicked))

    def clicked(self, event: Click) -> None:
        """Count the first click of a list."""
        first_click = self._recent.clicked(event.request_id) if event.request_id is not None else None
        if first_click is not None:
            arm, shopper = first_click
            self._tally(arm).add(shopper, clicked=1)

    def verdict(self) -> str:
        """Return the comparison in words."""
        test = self.test
        return (
            f"click-through of version {self.deployment.models[CANARY].version} is {test.canary.click_through:.4f} "
            f"({test.canary.shown} lists, {test.canary.shoppers} shoppers) against {test.stable.click_through:.4f} "
            f"({test.stable.shown} lists, {test.stable.shoppers} shoppers); always-valid p {test.p_value:.2g}"
        )

    def _arm(self, event: Impression, shopper: str) -> str | None:
        """Return the arm by the version that the list names, else by the shopper; None if the version is of neither."""
        if event.adapter_version is None:
            return CANARY if in_canary(shopper, self.deployment.rollout) else STABLE
        rollout = self.deployment.rollout
        if event.adapter_version == str(rollout.stable_version):
            return STABLE
        wanted = rollout.canary.version if rollout.canary else None
        if wanted is not None:
            return CANARY if event.adapter_version == str(wanted) else None
        newer = event.adapter_version.isdecimal() and int(event.adapter_version) > (rollout.stable_version or 0)
        return CANARY if newer else None

    def _tally(self, arm: str) -> Tally:
        return self.test.canary if arm == CANARY else self.test.stable


class RecentLists:
    """Arm and shopper of recent lists that may still be clicked, by request; the oldest are dropped first.

    A click may be read before its list, because the two are in different topics.

    Args:
        most: the number of lists, and of early clicks, kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lists: OrderedDict[str, tuple[str, str] | None] = OrderedDict()  # None once clicked
        self._early: OrderedDict[str, None] = OrderedDict()

    def shown(self, request_id: str, arm: str, shopper: str) -> tuple[bool, bool]:
        """Return whether a list is new, and whether it has been clicked already."""
        if request_id in self._lists:
            return False, False
        clicked = request_id in self._early
        self._early.pop(request_id, None)
        self._lists[request_id] = None if clicked else (arm, shopper)
        _bound(self._lists, self._most)
        return True, clicked

    def clicked(self, request_id: str) -> tuple[str, str] | None:
        """Return arm and shopper of a list at its first click; None for a later click or an unknown list."""
        if request_id not in self._lists:
            self._early[request_id] = None
            _bound(self._early, self._most)
            return None
        first_click, self._lists[request_id] = self._lists[request_id], None
        return first_click


def _bound(kept: OrderedDict[str, None] | OrderedDict[str, tuple[str, str] | None], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
