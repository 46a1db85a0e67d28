"""The loop of a scorer: announced, verified, built, warmed, flipped; what is served goes on meanwhile."""

import sqlite3
import threading
import time
from collections.abc import Sequence

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import (
    BuildStoppedError,
    BundleFormatError,
    HeadwaterModelError,
    RegistryError,
    RegistryUnavailableError,
)
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.bundle import Bundle
from peft_adapters.registry.rollout import STABLE, Rollout
from peft_adapters.serving.model_builder import build_model, refresh_model
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors
from peft_adapters.serving.served_model import ServedModel, require_finite_scores
from services import memory
from services.metrics.scorer import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.answers import Answers
from services.scorer.bundles import BundleSource
from services.scorer.catalogue_check import CatalogueCheck, far_smaller
from services.scorer.deployment import Deployment
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.model_slot import ModelSlot, Target, same_version
from services.scorer.next_adapter_encoder import NextAdapterEncoder
from services.scorer.refusals import Refusals
from services.scorer.registry_poller import RegistryPoller
from services.scorer.registry_status import ADAPTER, REGISTRY, Cause, cause_of
from services.scorer.scenarios import Scenarios
from services.scorer.shopper_state import StateSource
from services.secrets import describe_mismatch

log = structlog.get_logger(__name__)

ITEMS_CHUNK = 128  # texts encoded at a time: another process of this host may have done the next ones meanwhile
ITEMS_A_ROUND = 1_024  # so that an adapter never waits long behind a catalogue that changes as a whole
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
        catalogue_check: Looks at the configuration of the catalogue topics; None without Kafka.

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
        before: PreviousAdapterVectors,
        kept_rows: int = 20_000,
        pinned_scenarios: Sequence[str] = (),
        max_scenarios: int = 4,
        secret_fingerprint: str | None = None,
        catalogue_check: CatalogueCheck | None = None,
    ) -> None:
        self.scenario, self.shoppers = scenario, shoppers
        self.answers = Answers(items, shoppers, scenario=scenario)
        self.scenarios = Scenarios(
            announcements,
            pinned=(scenario, *pinned_scenarios),
            most=max_scenarios,
            slot=lambda name: ModelSlot(name, kept_rows=kept_rows, show=self._show),
        )
        self._encoder, self._catalogue, self._bundles, self._items = encoder, catalogue, bundles, items
        self._secret_fingerprint = secret_fingerprint
        self._catalogue_check = catalogue_check
        self._reader, self._announcements, self._metrics = reader, announcements, metrics
        self._items_refresh_seconds = items_refresh_seconds
        self._stop = threading.Event()
        self._interrupt = threading.Event()  # of a build, or of a pause: there is something more urgent
        self._changes = 0  # of items, since the start
        self._changes_in: dict[int, int] = {}  # how many of them a model has, by its identity
        self._ahead, self._before = NextAdapterEncoder(encoder, catalogue), before
        self._settled = False
        self._next_refresh = self._next_trim = 0.0  # monotonic seconds
        self._refusals = Refusals()
        self._status = announcements.status
        self._asking = RegistryPoller(bundles, announcements, pinned=self.scenarios.pinned)
        self.answers.ask = self.scenarios.ask
        announcements.on_rollout = self._obey

    def missing(self) -> str | None:
        """What is not there yet for an answer that uses all there is; None when the worker is ready."""
        if not self._reader.catalogue_read.is_set():
            return f"the catalogue has not been read yet; {self._why_no_catalogue()}"
        other_secret = self._other_secret()
        if other_secret is not None:
            return other_secret
        if self.answers.model is None:
            found = self.problems()
            why = found.get(ADAPTER) or found.get(REGISTRY) or "has an updater published one?"
            return f"no adapter of scenario {self.scenario!r} is held yet; {why}"
        if not self._reader.caught_up.is_set():
            return "shoppers' latest events are still being read"
        return None if self._settled else "all is there, and is being settled"

    def _why_no_catalogue(self) -> str:
        problem = self._reader.catalogue_problem()
        if problem is not None:
            return problem
        return "it is being read" if self._reader.is_reading else "is Kafka reachable, and do its topics exist?"

    def problems(self) -> dict[str, str]:
        """What the worker cannot have at present, with the cause and what is served meanwhile, by dependency."""
        found = {"kafka": self._reader.problem(), "state": self.shoppers.problem()}
        found |= {name: self._problem(name) for name in (REGISTRY, ADAPTER)}
        found |= {"catalogue": self._catalogue_problem(), "privacy": self._other_secret()}
        topics = {f"kafka/{name}": problem for name, problem in self._reader.topic_problems().items()}
        return {name: problem for name, problem in found.items() if problem is not None} | topics

    def _catalogue_problem(self) -> str | None:
        problem = None if self._catalogue_check is None else self._catalogue_check.problem
        if problem is None and self._reader.catalogue_read.is_set() and self.answers.model is not None:
            problem = far_smaller(self.answers.model)
        return problem

    def _problem(self, name: str) -> str | None:
        """Sentences about the registry, or about versions that cannot be loaded, for all scenarios."""
        sentences = []
        for scenario in dict.fromkeys((*self.scenarios.pinned, *(slot.scenario for slot in self.scenarios.slots()))):
            slot = self.scenarios.get(scenario)
            stable = None if slot is None else slot.deployment.stable
            causes = self._status.causes(scenario, name)
            if name == ADAPTER and slot is not None:
                served = None if stable is None else stable.version
                causes += self._refusals.problems(scenario, slot.unmet(), served)
            if causes:
                meanwhile = "nothing is served yet" if stable is None else f"version {stable.version} is served"
                sentences.append(f"{'; '.join(causes)}; {meanwhile}")
        return self._bundles.without_addresses("; ".join(sentences)) or None

    def _other_secret(self) -> str | None:
        """Say that the deployment's secret is another than this process's: it would not know its shoppers."""
        if self._secret_fingerprint is None:
            return None
        model = self.answers.model
        made_with = None if model is None else model.manifest.secret_fingerprint
        agreed = self._reader.secret_fingerprint
        return describe_mismatch(self._secret_fingerprint, agreed, source="the control topic") or describe_mismatch(
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
            self._asking.look_again()
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
        pause_seconds = (
            self._items_refresh_seconds if self._settled else min(_START_SECONDS, self._items_refresh_seconds)
        )
        return min(pause_seconds, self._asking.seconds_until_next())

    def _begin(self) -> None:
        """Wait for the catalogue; with nothing announced, ask the registry for its latest."""
        while not self._reader.catalogue_read.wait(0.1) and not self._stop.is_set():
            self._take_items(ITEMS_CHUNK)  # encode while the rest is being read
        self._take_items(len(self._items))
        for scenario in self.scenarios.pinned:
            self._asking.ask(scenario)

    def _settle(self) -> None:
        """Once all is there that answers need, and before anyone is told so: the collection holds up whoever asks."""
        if not self._settled and self.answers.model is not None and self._reader.caught_up.is_set():
            memory.freeze_gc()
            self._settled = True

    def _trim(self) -> None:
        """Now and then, since each build leaves holes where the one before it was."""
        if time.monotonic() >= self._next_trim:
            memory.trim()
            self._next_trim = time.monotonic() + _TRIM_SECONDS

    def _take_items(self, limit: int = ITEMS_A_ROUND) -> None:
        """Encode items that came or changed, in order of arrival."""
        self._metrics.show_catalogue(self._items.present)
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
        self._refusals.clear()
        slot = self.scenarios.get(rollout.scenario)
        if slot is not None and slot.obey(rollout, None):
            self._interrupt.set()

    def _follow(self, scenario: str, heard: float) -> None:
        """Bring the arms of a scenario to what was announced."""
        missing = self._missing(scenario)
        try:
            for target in missing:
                if self._refusals.may_try(scenario, target):
                    self._bring_or_go_back(self.scenarios.slot(scenario), target, heard)
        except BuildStoppedError:
            self._announcements.put_back(scenario)
            return
        except (RegistryUnavailableError, OSError) as error:
            self._try_again(scenario, error)
            return
        self._status.answered(scenario, "bundle")
        next_try = self._refusals.next_try(scenario, missing)
        if next_try is not None:
            self._asking.later(scenario, next_try)

    def _bring_or_go_back(self, slot: ModelSlot, target: Target, heard: float) -> None:
        """Serve a version; where it cannot be loaded and nothing is served yet, the newest before it that can."""
        try:
            self._bring(slot, target, heard)
        except (BuildStoppedError, RegistryUnavailableError, OSError):
            raise
        except Exception as error:
            self._refuse(slot.scenario, target, error)
            if target.arm == STABLE and slot.deployment.stable is None:
                self._go_back(slot, target)

    def _go_back(self, slot: ModelSlot, target: Target) -> None:
        for version in self._bundles.before(slot.scenario, target.version):
            older = Target(STABLE, version)
            try:
                model = self._built(slot, older)
                self._warm(model)
            except (BuildStoppedError, RegistryUnavailableError, OSError):
                raise
            except Exception as error:
                self._refuse(slot.scenario, older, error)
                continue
            if slot.stand_in(target, model):
                log.warning("older_adapter_served", scenario=slot.scenario, version=version, refused=target.version)
            return

    def _missing(self, scenario: str) -> list[Target]:
        """What is to be built for a scenario; what is held is flipped at once."""
        news = self._announcements.news(scenario)
        if news.rollout is None or (news.latest is None and scenario not in self.scenarios.pinned):
            self._asking.ask(scenario)
            news = self._announcements.news(scenario)
        if news.latest is None and scenario not in self.scenarios.pinned:
            self.scenarios.nothing(scenario)
            return []
        for let_go in self.scenarios.open(scenario):
            self.answers.deployments.pop(let_go, None)
            self._ahead.drop(let_go)
            self._metrics.rollouts.scenario_dropped(let_go)
            log.info("scenario_let_go", scenario=let_go)
        slot = self.scenarios.slot(scenario)
        missing = slot.obey(news.rollout, news.latest)
        if slot.is_pinned:
            self._ahead.drop(scenario)  # what comes next is not for this worker
        return missing

    def _bring(self, slot: ModelSlot, target: Target, heard: float) -> None:
        model = self._built(slot, target)  # 2. verified, 3. built
        self._warm(model)  # 4. warmed
        self._refusals.loaded(slot.scenario, target)
        self._asking.loaded(slot.scenario)
        self._status.bundle_read(slot.scenario)
        if slot.place(target, model):  # 5. flipped
            self._metrics.swap_took(time.perf_counter() - heard)
            if target.arm == STABLE and not slot.is_pinned:
                self._ahead.follow(slot.scenario, model)

    def _warm(self, model: ServedModel) -> None:
        """Check that a model scores all items, and have it answer the latest requests before it is served.

        Raises:
            BundleFormatError: An item has no finite score.
        """
        require_finite_scores(model)
        self.answers.warm(model)

    def _built(self, slot: ModelSlot, target: Target) -> ServedModel:
        """A version: by deltas on a model that is held where they fit, else from its last full bundle."""
        bundles, base = self._bundles.fetch(slot.scenario, target.version, slot.models())
        try:
            return self._build(slot, bundles, base or slot.deployment.stable)
        except BundleFormatError as error:
            if bundles[0].manifest.kind == "full":
                raise
            log.warning("delta_does_not_fit", problem=str(error), remedy="building from the last full bundle")
        bundles, _ = self._bundles.fetch(slot.scenario, target.version, ())
        return self._build(slot, bundles, slot.deployment.stable)

    def _build(self, slot: ModelSlot, bundles: Sequence[Bundle], previous: ServedModel | None) -> ServedModel:
        model = build_model(
            bundles,
            previous=previous,
            catalogue=self._catalogue,
            encoder=self._encoder,
            stop=self._interrupt,
            next_adapter_vectors=self._ahead.of(slot.scenario),
            previous_adapter_vectors=self._before,
        )
        self._changes_in[id(model)] = self._changes
        return model

    def _refresh(self) -> None:
        """Serve the same versions over the items as they are now."""
        for slot in self.scenarios.slots():
            for model in {id(model): model for model in slot.deployment.models.values()}.values():
                if self._changes_in.get(id(model)) == self._changes or self._interrupt.is_set():
                    continue
                try:
                    new = refresh_model(model, catalogue=self._catalogue, encoder=self._encoder, stop=self._interrupt)
                except BuildStoppedError:
                    return
                except Exception as error:
                    log.error("items_not_refreshed", problem=str(error), exc_info=error)
                    return
                self._changes_in[id(new)] = self._changes
                slot.renew(model, new)
        held = {id(model) for slot in self.scenarios.slots() for model in slot.models()}
        self._changes_in = {key: changes for key, changes in self._changes_in.items() if key in held}

    def _show(self, before: Deployment, deployment: Deployment) -> None:
        """Answer from another deployment: requests under way end on the models that they began with."""
        self.answers.deployments[deployment.scenario] = deployment
        for arm, model in deployment.models.items():
            old = before.model_of(arm)
            if old is None or not same_version(old, model):
                self._metrics.adapter_swapped()
                log.info(
                    "adapter_served", scenario=deployment.scenario, arm=arm, version=model.version, items=len(model)
                )
        rollout, versions = deployment.rollout, {arm: model.version for arm, model in deployment.models.items()}
        share = rollout.canary.percent / 100 if rollout.canary is not None else 0.0
        self._metrics.rollouts.show(deployment.scenario, rollout.revision, share, versions)
        if (
            deployment.scenario == self.scenario
            and deployment.stable is not None
            and deployment.stable is not before.stable
        ):
            self._show_stable(deployment.stable)

    def _show_stable(self, model: ServedModel) -> None:
        manifest = model.manifest
        self._metrics.adapter.show(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )
        if model.unused_vectors:
            log.warning("vectors_not_used", vectors=model.unused_vectors, why="another length than the adapter takes")
        self._metrics.show_model(items=int(model.has_text.sum()), unused_vectors=model.unused_vectors)

    def _refuse(self, scenario: str, target: Target, error: Exception) -> None:
        """Go on with what is served; a fault that is not the bundle's own is logged with its traceback."""
        problem = str(error) if isinstance(error, HeadwaterModelError) else f"it cannot be built: {error!r}"
        if not self._refusals.add(scenario, target, problem):
            return  # reported before
        self._metrics.adapter_refused()
        log.warning(
            "adapter_refused",
            scenario=scenario,
            arm=target.arm,
            version=target.version,
            problem=str(error),
            exc_info=None if isinstance(error, HeadwaterModelError) else error,
        )

    def _try_again(self, scenario: str, error: Exception) -> None:
        """Go on with what is served, and try again after a pause; logged once an outage."""
        if isinstance(error, RegistryError):
            cause = cause_of(error, scenario)
        else:
            cause = Cause(
                ADAPTER,
                f"a version of {scenario!r} cannot be kept on this host while it is loaded: {error}; make room in the "
                "scorer's temporary directory, TMPDIR, or give rights there",
            )
        if self._status.failed(scenario, "bundle", cause):
            log.warning(
                "registry_lost" if cause.name == REGISTRY else "version_not_kept",
                problem=str(error),
                retry="after a pause",
            )
        self._asking.later(scenario)
