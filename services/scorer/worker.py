"""The loop of a scorer: announced, verified, built, warmed, flipped; what is served goes on meanwhile."""

import sqlite3
import threading
import time
from collections.abc import Sequence

import structlog

from peft_adapters.bundle import Bundle
from peft_adapters.catalogue import Catalogue
from peft_adapters.encoder import Encoder
from peft_adapters.errors import BundleError, BundleFormatError, HeadwaterModelError, RegistryError
from peft_adapters.rollout import Rollout
from peft_adapters.serving import BuildStoppedError, ServedModel, build, refreshed
from peft_adapters.texts_before import TextsBefore
from services import memory
from services.metrics import ScorerMetrics
from services.secrets import mismatch
from services.scorer.ahead import Ahead
from services.scorer.announcements import Announcements
from services.scorer.answers import Answers
from services.scorer.bundles import BundleSource
from services.scorer.lineup import STABLE, Lineup
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.scenarios import Scenarios
from services.scorer.seat import Seat, Target, same_version
from services.scorer.shopper_state import StateSource
from streams.connection import backoff_seconds

log = structlog.get_logger(__name__)

ITEMS_CHUNK = 128  # texts encoded at a time: another process of this host may have done the next ones meanwhile
ITEMS_A_ROUND = 1_024  # so that an adapter never waits long behind a catalogue that changes as a whole
REFUSED_REMEMBERED = 64
_START_SECONDS = 0.1  # between two looks whether all is there
_TRIM_SECONDS = 10.0


class Worker:
    """Follows published adapters and rollouts in one thread; what is served is replaced whole, by one reference.

    A rollout that asks for models that are held is obeyed at once, by the thread that hears of it, whatever this one is
    at; what it is building meanwhile it leaves.

    Args:
        scenario: Which ranking, where a request names none.
        encoder: Of this thread alone.
        catalogue: The items as the model sees them, of this thread alone; same order as `items`.
        bundles: Where bundles come from.
        items: The live catalogue.
        shoppers: The live states of shoppers.
        reader: Reads the log.
        announcements: What was announced.
        metrics: Where swaps are counted.
        items_refresh_seconds: New items become rankable at most so often between adapters.
        before: Keeps texts' vectors under former adapters.
        kept_rows: Rows of models kept beside those that are served, by scenario.
        pinned_scenarios: Loaded at the start and never let go, beside `scenario`.
        secret_fingerprint: Of the secret of this process; None checks nothing.
        max_scenarios: Held at a time; those that are not pinned go, the longest unasked first.

    Attributes:
        answers: Answers from what is served.
    """

    def __init__(
        self,
        *,
        scenario: str,
        encoder: Encoder,
        catalogue: Catalogue,
        bundles: BundleSource,
        items: LiveItems,
        shoppers: StateSource,
        reader: LogReader,
        announcements: Announcements,
        metrics: ScorerMetrics,
        items_refresh_seconds: float,
        before: TextsBefore,
        kept_rows: int = 20_000,
        pinned_scenarios: Sequence[str] = (),
        max_scenarios: int = 4,
        secret_fingerprint: str | None = None,
    ) -> None:
        self.scenario, self.shoppers = scenario, shoppers
        self.answers = Answers(items, shoppers, scenario=scenario)
        self.scenarios = Scenarios(
            announcements,
            pinned=(scenario, *pinned_scenarios),
            most=max_scenarios,
            seat=lambda name: Seat(name, kept_rows=kept_rows, show=self._show),
        )
        self._encoder, self._catalogue, self._bundles, self._items = encoder, catalogue, bundles, items
        self._secret_fingerprint = secret_fingerprint
        self._reader, self._announcements, self._metrics = reader, announcements, metrics
        self._items_refresh_seconds = items_refresh_seconds
        self._stop = threading.Event()
        self._interrupt = threading.Event()  # of a build, or of a pause: there is something more urgent
        self._pauses = backoff_seconds()
        self._changes = 0  # of items, since the start
        self._changes_in: dict[int, int] = {}  # how many of them a model has, by its identity
        self._ahead, self._before = Ahead(encoder, catalogue), before
        self._settled = False
        self._next_refresh = self._next_trim = 0.0  # monotonic seconds
        self._refused: dict[tuple[str, int, str], None] = {}  # scenario, version, digest
        self._away: str | None = None  # what was last said of a registry that does not answer
        self.answers.ask = self.scenarios.ask
        announcements.on_rollout = self._obey

    def missing(self) -> str | None:
        """What is not there yet for an answer that uses all there is; None when the worker is ready."""
        if not self._reader.catalogue_read.is_set():
            return "the catalogue has not been read yet; is Kafka reachable, and do its topics exist?"
        other_secret = self._other_secret()
        if other_secret is not None:
            return other_secret
        if self.answers.model is None:
            return f"no adapter of scenario {self.scenario!r} is held yet; has an updater published one?"
        if not self._reader.caught_up.is_set():
            return "shoppers' latest events are still being read"
        return None if self._settled else "all is there, and is being settled"

    def problems(self) -> dict[str, str]:
        """What a worker depends on and cannot have at present, while it serves what it has; why, by name."""
        registry = None if self._away is None else "the registry does not answer; the adapter that is held is served"
        found = {
            "kafka": self._reader.problem(),
            "registry": registry,
            "state": self.shoppers.problem(),
            "privacy": self._other_secret(),
        }
        return {name: problem for name, problem in found.items() if problem is not None}

    def _other_secret(self) -> str | None:
        """Say that the deployment's secret is another than this process's: it would not know its shoppers."""
        if self._secret_fingerprint is None:
            return None
        model = self.answers.model
        made_with = None if model is None else model.manifest.secret_fingerprint
        agreed = self._reader.secret_fingerprint
        return mismatch(self._secret_fingerprint, agreed, source="the control topic") or mismatch(
            self._secret_fingerprint, None if agreed else made_with, source="the adapter that is held"
        )

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()
        self._interrupt.set()

    def run(self) -> None:
        """Follow what is announced until stopped."""
        self._begin()
        while not self._stop.is_set():
            scenario = self._announcements.wait(self._pause_seconds())  # 1. announced
            heard = time.perf_counter()
            self._interrupt.clear()
            if self._stop.is_set():
                return
            if scenario is not None or time.monotonic() >= self._next_refresh:
                self._take_items()
                if scenario is not None:
                    self._follow(scenario, heard)
                self._refresh()
                self._next_refresh = time.monotonic() + self._items_refresh_seconds
            self._ahead.work()
            self._settle()
            self._trim()

    def _pause_seconds(self) -> float:
        """How long to wait for an announcement before something else is to be done."""
        if self._ahead.is_behind:
            return 0.0
        return self._items_refresh_seconds if self._settled else min(_START_SECONDS, self._items_refresh_seconds)

    def _begin(self) -> None:
        """Wait for the catalogue; with nothing announced, ask the registry for its latest."""
        while not self._reader.catalogue_read.wait(0.1) and not self._stop.is_set():
            self._take_items(ITEMS_CHUNK)  # encode while the rest is being read
        self._take_items(len(self._items))
        for scenario in self.scenarios.pinned:
            try:
                self._ask(scenario)
            except (RegistryError, BundleError) as error:
                log.warning("registry_not_asked", scenario=scenario, problem=str(error))

    def _ask(self, scenario: str) -> None:
        """Ask the registry for what nobody has announced."""
        self._announcements.offer_rollout(self._bundles.rollout(scenario))
        latest = self._bundles.latest(scenario)
        if latest is not None:
            self._announcements.offer(latest, only_newer=True)

    def _settle(self) -> None:
        """Once all is there that answers need, and before anyone is told so: the collection holds up whoever asks."""
        if not self._settled and self.answers.model is not None and self._reader.caught_up.is_set():
            memory.settle()
            self._settled = True

    def _trim(self) -> None:
        """Now and then, since each build leaves holes where the one before it was."""
        if time.monotonic() >= self._next_trim:
            memory.trim()
            self._next_trim = time.monotonic() + _TRIM_SECONDS

    def _take_items(self, limit: int = ITEMS_A_ROUND) -> None:
        """Encode items that came or changed, in order of arrival."""
        end = self._changes + limit
        while self._changes < end and not self._interrupt.is_set():
            items = self._items.take_changes(ITEMS_CHUNK)
            if not items:
                return
            try:
                self._catalogue.upsert(items)
            except sqlite3.Error as error:  # the disk of the cache: the same items are tried again in the next round
                self._items.give_back(items)
                log.warning("items_not_encoded", problem=str(error), items=len(items))
                return
            self._changes += len(items)

    def _obey(self, rollout: Rollout) -> None:
        """Flip what a rollout asks for and is held; called by whoever heard of it."""
        self._refused.clear()
        seat = self.scenarios.get(rollout.scenario)
        if seat is not None and seat.obey(rollout, None):
            self._interrupt.set()

    def _follow(self, scenario: str, heard: float) -> None:
        """Bring the arms of a scenario to what was announced."""
        target: Target | None = None
        try:
            for target in self._missing(scenario):
                if self._name(scenario, target) not in self._refused:
                    self._bring(self.scenarios.seat(scenario), target, heard)
        except BuildStoppedError:
            self._announcements.put_back(scenario)
        except (RegistryError, OSError) as error:
            self._try_again(scenario, error)
        except Exception as error:
            self._refuse(scenario, target, error)

    def _missing(self, scenario: str) -> list[Target]:
        """What is to be built for a scenario; what is held is flipped at once."""
        news = self._announcements.news(scenario)
        if news.rollout is None or (news.latest is None and scenario not in self.scenarios.pinned):
            self._ask(scenario)
            news = self._announcements.news(scenario)
        if news.latest is None and scenario not in self.scenarios.pinned:
            self.scenarios.nothing(scenario)
            return []
        for let_go in self.scenarios.open(scenario):
            self.answers.lineups.pop(let_go, None)
            self._ahead.drop(let_go)
            self._metrics.rollouts.let_go(let_go)
            log.info("scenario_let_go", scenario=let_go)
        seat = self.scenarios.seat(scenario)
        missing = seat.obey(news.rollout, news.latest)
        if seat.is_pinned:
            self._ahead.drop(scenario)  # what comes next is not for this worker
        return missing

    def _bring(self, seat: Seat, target: Target, heard: float) -> None:
        model = self._built(seat, target)  # 2. verified, 3. built
        self.answers.warm(model)  # 4. warmed
        if seat.place(target, model):  # 5. flipped
            self._pauses, self._away = backoff_seconds(), None
            self._metrics.swap_seconds.observe(time.perf_counter() - heard)
            if target.arm == STABLE and not seat.is_pinned:
                self._ahead.follow(seat.scenario, model)

    def _built(self, seat: Seat, target: Target) -> ServedModel:
        """A version: by deltas on a model that is held where they fit, else from its last full bundle."""
        bundles, base = self._bundles.fetch(seat.scenario, target.version, seat.models())
        try:
            return self._build(seat, bundles, base or seat.lineup.stable)
        except BundleFormatError as error:
            if bundles[0].manifest.kind == "full":
                raise
            log.warning("delta_does_not_fit", problem=str(error), remedy="building from the last full bundle")
        bundles, _ = self._bundles.fetch(seat.scenario, target.version, ())
        return self._build(seat, bundles, seat.lineup.stable)

    def _build(self, seat: Seat, bundles: Sequence[Bundle], previous: ServedModel | None) -> ServedModel:
        model = build(
            bundles,
            previous=previous,
            catalogue=self._catalogue,
            encoder=self._encoder,
            stop=self._interrupt,
            ahead=self._ahead.of(seat.scenario),
            before=self._before,
        )
        self._changes_in[id(model)] = self._changes
        return model

    def _refresh(self) -> None:
        """Serve the same versions over the items as they are now."""
        for seat in self.scenarios.seats():
            for model in {id(model): model for model in seat.lineup.models.values()}.values():
                if self._changes_in.get(id(model)) == self._changes or self._interrupt.is_set():
                    continue
                try:
                    new = refreshed(model, catalogue=self._catalogue, encoder=self._encoder, stop=self._interrupt)
                except BuildStoppedError:
                    return
                except Exception as error:
                    log.error("items_not_refreshed", problem=str(error), exc_info=error)
                    return
                self._changes_in[id(new)] = self._changes
                seat.renew(model, new)
        held = {id(model) for seat in self.scenarios.seats() for model in seat.models()}
        self._changes_in = {key: changes for key, changes in self._changes_in.items() if key in held}

    def _show(self, before: Lineup, lineup: Lineup) -> None:
        """Answer from another lineup: requests under way end on the models that they began with."""
        self.answers.lineups[lineup.scenario] = lineup
        for arm, model in lineup.models.items():
            old = before.model_of(arm)
            if old is None or not same_version(old, model):
                self._metrics.swaps.labels("swapped").inc()
                log.info("adapter_served", scenario=lineup.scenario, arm=arm, version=model.version, items=len(model))
        rollout, versions = lineup.rollout, {arm: model.version for arm, model in lineup.models.items()}
        share = rollout.canary.percent / 100 if rollout.canary is not None else 0.0
        self._metrics.rollouts.show(lineup.scenario, rollout.revision, share, versions)
        if lineup.scenario == self.scenario and lineup.stable is not None and lineup.stable is not before.stable:
            self._show_stable(lineup.stable)

    def _show_stable(self, model: ServedModel) -> None:
        manifest = model.manifest
        self._metrics.adapter.stand_at(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )
        self._metrics.items.set(int(model.has_text.sum()))
        if model.unused_vectors:
            log.warning("vectors_not_used", vectors=model.unused_vectors, why="another length than the adapter takes")
        self._metrics.unused_vectors.set(model.unused_vectors)

    def _refuse(self, scenario: str, target: Target | None, error: Exception) -> None:
        """Go on with what is served; a fault that is not the bundle's own is told with its traceback."""
        if target is not None:
            self._refused[self._name(scenario, target)] = None
            while len(self._refused) > REFUSED_REMEMBERED:
                self._refused.pop(next(iter(self._refused)))
        self._metrics.swaps.labels("refused").inc()
        log.warning(
            "adapter_refused",
            scenario=scenario,
            arm=target.arm if target else STABLE,
            version=target.version if target else None,
            problem=str(error),
            exc_info=None if isinstance(error, HeadwaterModelError) else error,
        )

    def _name(self, scenario: str, target: Target) -> tuple[str, int, str]:
        return scenario, target.version, target.manifest.digest if target.manifest else ""

    def _try_again(self, scenario: str, error: Exception) -> None:
        """Go on with what is served, and have another try later; said once an outage."""
        if self._away is None:
            log.warning("registry_lost", problem=str(error), retry="until it answers")
        self._away = str(error)
        self._announcements.put_back(scenario)
        self._interrupt.wait(next(self._pauses))
