"""Watches a canary from the log: are its lists clicked as those of the stable version are? If told to, it ends it.

Every worker reads all lists and all clicks, whoever answered, so that all know the same without telling each other.
Nothing is read while no canary runs.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import closing

import structlog

from peft_adapters.registry.rollout import CANARY, STABLE, Rollout
from services.metrics.canaries import CanaryMetrics
from services.scorer.deployment import Deployment, in_canary
from services.scorer.sequential import CanaryTest, Tally
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

LOOK_SECONDS = 0.5
MAX_RECORDS = 1_000
RECENT_LISTS = 100_000


class CanaryMonitor:
    """Reads lists and clicks while a canary runs, and judges it.

    Args:
        connection: Which Kafka.
        topics: The names of the topics.
        deployments: What is served, by scenario.
        pseudonymise: What becomes of ids of users in events.
        settings: When a canary is worse.
        metrics: Where the two arms are shown.
        end: Called with the rollout of a canary that is worse and is to end by itself, and why.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        deployments: Mapping[str, Deployment],
        pseudonymise: Callable[[str], str],
        settings: CanarySettings,
        metrics: CanaryMetrics,
        end: Callable[[Rollout, str], None],
    ) -> None:
        self._connection, self._topics, self._lineups = connection, topics, deployments
        self._pseudonymise, self._settings, self._metrics, self._end = pseudonymise, settings, metrics, end
        self._trials: dict[str, Trial] = {}
        self._positions: Offsets | None = None  # None: from the end of the log
        self._topic_ids: dict[str, str] = {}  # the logs that the positions belong to
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Watch until stopped; what fails is tried again."""
        pauses, known = backoff_seconds(), None
        while not self._stop.wait(LOOK_SECONDS):
            if not self.look():
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
            except Exception:  # a fault of ours: shoppers are answered all the same
                log.exception("canary_watch_failed")
                self._stop.wait(next(pauses))

    def look(self) -> bool:
        """Begin and end trials as canaries do; whether there is any."""
        running = {
            name: deployment for name, deployment in list(self._lineups.items()) if deployment.canary is not None
        }
        for name in self._trials.keys() - running.keys():
            del self._trials[name]
            self._metrics.trial_ended(name)
        for name, deployment in running.items():
            trial = self._trials.get(name)
            if trial is None or not trial.goes_on(deployment):
                self._trials[name] = Trial(deployment, self._settings)
                log.info("canary_watched", scenario=name, version=deployment.models[CANARY].version)
            else:
                trial.deployment = deployment
        return bool(running)

    def take_in(self, event: Impression | Click) -> None:
        """Count a list or a click."""
        trial = self._trials.get(event.scenario)
        if trial is None:
            return
        if isinstance(event, Click):
            trial.clicked(event)
        else:
            trial.shown(event, self._pseudonymise(event.user_id))

    def judge(self) -> None:
        """Show how the arms stand, and end a canary that is worse where it is to end by itself."""
        for name, trial in list(self._trials.items()):
            test, rollout = trial.test, trial.deployment.rollout
            test.look()
            for arm, tally in ((STABLE, test.stable), (CANARY, test.canary)):
                self._metrics.show_arm(name, arm, lists=tally.shown, click_through=tally.click_through)
            self._metrics.show_p_value(name, test.p_value)
            if not test.is_worse or trial.is_told:
                continue
            trial.is_told = True
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
            while not self._stop.is_set() and self.look():
                for record in consumer.poll(LOOK_SECONDS, MAX_RECORDS):
                    self._take_in_record(record)
                self._positions, self._topic_ids = consumer.positions(), consumer.topic_ids()
                self.judge()

    def _take_in_record(self, record: Record) -> None:
        decoded = decode(record, self._topics)
        if isinstance(decoded, DeadLetter):
            return  # the updater's to report
        for event in decoded:
            if isinstance(event, Impression | Click):
                self.take_in(event)


class Trial:
    """One canary beside its stable version.

    Args:
        deployment: As it stands when the trial begins.
        settings: When a canary is worse.

    Attributes:
        deployment: As it stands now.
        test: Knows how the two compare.
        is_told: Whether it was said that the canary is worse.
    """

    def __init__(self, deployment: Deployment, settings: CanarySettings) -> None:
        self.deployment, self.test, self.is_told = deployment, CanaryTest(settings), False
        self._recent = RecentLists(RECENT_LISTS)

    def goes_on(self, deployment: Deployment) -> bool:
        """Whether a deployment compares the same two: another share is no other trial."""
        one, other = self.deployment.rollout, deployment.rollout
        named = [rollout.canary.version if rollout.canary else None for rollout in (one, other)]
        return one.stable_version == other.stable_version and named[0] == named[1]

    def shown(self, event: Impression, shopper: str) -> None:
        """Count a list, under the arm that answered it."""
        arm = self._arm(event, shopper)
        if arm is None:
            return
        new, clicked = self._recent.shown(event.request_id, arm, shopper)
        if new:
            self._tally(arm).add(shopper, shown=1, clicked=int(clicked))

    def clicked(self, event: Click) -> None:
        """Count the first click of a list."""
        found = self._recent.clicked(event.request_id) if event.request_id is not None else None
        if found is not None:
            arm, shopper = found
            self._tally(arm).add(shopper, clicked=1)

    def verdict(self) -> str:
        """How the two compare, in words."""
        test = self.test
        return (
            f"click-through of version {self.deployment.models[CANARY].version} is {test.canary.click_through:.4f} "
            f"({test.canary.shown} lists, {test.canary.shoppers} shoppers) against {test.stable.click_through:.4f} "
            f"({test.stable.shown} lists, {test.stable.shoppers} shoppers); always-valid p {test.p_value:.2g}"
        )

    def _arm(self, event: Impression, shopper: str) -> str | None:
        """By the version that the list names; else by the shopper. None is a version of neither."""
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
    """Lists that may still be clicked, by request: which arm answered whom. The oldest go first.

    A click may be read before its list, because the two come from different topics.

    Args:
        most: Lists and early clicks kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lists: OrderedDict[str, tuple[str, str] | None] = OrderedDict()  # None once clicked
        self._early: OrderedDict[str, None] = OrderedDict()

    def shown(self, request_id: str, arm: str, shopper: str) -> tuple[bool, bool]:
        """Whether a list is new, and whether it has been clicked already."""
        if request_id in self._lists:
            return False, False
        clicked = request_id in self._early
        self._early.pop(request_id, None)
        self._lists[request_id] = None if clicked else (arm, shopper)
        _bound(self._lists, self._most)
        return True, clicked

    def clicked(self, request_id: str) -> tuple[str, str] | None:
        """Arm and shopper of a list that is clicked for the first time."""
        if request_id not in self._lists:
            self._early[request_id] = None
            _bound(self._early, self._most)
            return None
        found, self._lists[request_id] = self._lists[request_id], None
        return found


def _bound(kept: OrderedDict[str, None] | OrderedDict[str, tuple[str, str] | None], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
