"""The loop of a scorer: 1. announced, 2. verified, 3. built, 4. warmed, 5. swapped, while requests are answered."""

import threading
import time
from collections.abc import Sequence

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import BuildStoppedError, HeadwaterModelError, RegistryError, RegistryUnavailableError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.rollout import STABLE
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors
from services import memory
from services.metrics.scorer import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.bundles import BundleSource
from services.scorer.catalogue_check import CatalogueCheck
from services.scorer.catalogue_encoder import ITEMS_CHUNK, CatalogueEncoder
from services.scorer.health import Health
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.model_factory import ModelFactory
from services.scorer.model_slot import ModelSlot, Target
from services.scorer.next_adapter_encoder import NextAdapterEncoder
from services.scorer.recommender import Recommender
from services.scorer.refusals import Refusals
from services.scorer.registry_poller import RegistryPoller
from services.scorer.registry_status import ADAPTER, REGISTRY, Cause, cause_of
from services.scorer.scenarios import Scenarios
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import StateSource

log = structlog.get_logger(__name__)

_START_SECONDS = 0.1  # between two checks of whether the start is complete
_TRIM_SECONDS = 10.0


class Worker:
    """Follows announced versions and rollouts in one thread, and swaps models in the serving table.

    A rollout that names held models is applied at once by the thread that receives it (`RolloutApplier`), which also
    interrupts the build that this thread may be busy with.

    Args:
        table: the models that are served.
        recommender: warms new models.
        encoder: the encoder, for this thread alone.
        catalogue: the items as models see them, for this thread alone; same order as `items`.
        bundles: reads versions from the registry.
        items: the live catalogue.
        shoppers: the states of shoppers.
        reader: reads the log.
        announcements: holds what was announced.
        refusals: the versions that could not be loaded.
        interrupt: abandons a build, or ends a pause, when something more urgent came up.
        metrics: the metrics of the process.
        items_refresh_seconds: the shortest time between two refreshes of the catalogue.
        previous_vectors: keeps text vectors of former adapters.
        pinned_scenarios: the scenarios loaded at the start and never dropped, beside the default one.
        max_scenarios: the number of scenarios held at a time; the least recently requested go first.
        secret_fingerprint: the fingerprint of this process's secret; None skips the comparison.
        catalogue_check: checks the configuration of the catalogue topics; None without Kafka.

    Attributes:
        scenarios: the scenarios that are held.
        health: readiness and problems.
    """

    def __init__(
        self,
        *,
        table: ServingTable,
        recommender: Recommender,
        encoder: Encoder,
        catalogue: Catalogue,
        bundles: BundleSource,
        items: LiveItems,
        shoppers: StateSource,
        reader: LogReader,
        announcements: Announcements,
        refusals: Refusals,
        interrupt: threading.Event,
        metrics: ScorerMetrics,
        items_refresh_seconds: float,
        previous_vectors: PreviousAdapterVectors,
        pinned_scenarios: Sequence[str] = (),
        max_scenarios: int = 4,
        secret_fingerprint: str | None = None,
        catalogue_check: CatalogueCheck | None = None,
    ) -> None:
        self._table, self._announcements, self._bundles, self._reader = table, announcements, bundles, reader
        self._refusals, self._interrupt, self._metrics = refusals, interrupt, metrics
        self._items_refresh_seconds = items_refresh_seconds
        self._stop = threading.Event()
        self._next_refresh = self._next_trim = 0.0  # monotonic seconds
        self._status = announcements.status
        self.scenarios = Scenarios(table, announcements, pinned=(table.scenario, *pinned_scenarios), most=max_scenarios)
        self.health = Health(
            table=table,
            scenarios=self.scenarios,
            reader=reader,
            shoppers=shoppers,
            bundles=bundles,
            status=announcements.status,
            refusals=refusals,
            secret_fingerprint=secret_fingerprint,
            catalogue_check=catalogue_check,
        )
        self._poller = RegistryPoller(bundles, announcements, pinned=self.scenarios.pinned)
        self._catalogue_encoder = CatalogueEncoder(items, catalogue, metrics, interrupt)
        self._next_adapter = NextAdapterEncoder(encoder, catalogue)
        self._factory = ModelFactory(
            encoder=encoder,
            catalogue=catalogue,
            bundles=bundles,
            changes=self._catalogue_encoder,
            recommender=recommender,
            next_adapter=self._next_adapter,
            previous_vectors=previous_vectors,
            interrupt=interrupt,
        )

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()
        self._interrupt.set()

    def run(self) -> None:
        """Follow announcements until stopped."""
        self._start()
        while not self._stop.is_set():
            scenario = self._announcements.wait(self._pause_seconds())  # 1. announced
            announced_at = time.perf_counter()
            self._interrupt.clear()
            if self._stop.is_set():
                return
            self._poller.requeue_due()
            if scenario is not None or time.monotonic() >= self._next_refresh:
                self._catalogue_encoder.encode()
                if scenario is not None:
                    self._update(scenario, announced_at)
                self._factory.refresh(self._table.slots())
                self._next_refresh = time.monotonic() + self._items_refresh_seconds
            self._next_adapter.encode_some()
            self._finish_start()
            self._trim()

    def _pause_seconds(self) -> float:
        """Return how long to wait for an announcement before other work is due."""
        if self._next_adapter.has_work:
            return 0.0
        refresh_seconds = self._items_refresh_seconds
        pause_seconds = refresh_seconds if self.health.is_started else min(_START_SECONDS, refresh_seconds)
        return min(pause_seconds, self._poller.seconds_until_next())

    def _start(self) -> None:
        """Encode the catalogue while it is read, then poll the registry once for each pinned scenario."""
        while not self._reader.catalogue_read.wait(0.1) and not self._stop.is_set():
            self._catalogue_encoder.encode(ITEMS_CHUNK)
        self._catalogue_encoder.encode_all()
        for scenario in self.scenarios.pinned:
            self._poller.poll(scenario)

    def _finish_start(self) -> None:
        """Freeze the garbage collector's generations once, before readiness: a full collection stalls requests."""
        if not self.health.is_started and self.health.is_complete:
            memory.freeze_gc()
            self.health.confirm_started()

    def _trim(self) -> None:
        """Return freed memory to the system now and then: each build leaves holes where the one before it was."""
        if time.monotonic() >= self._next_trim:
            memory.trim()
            self._next_trim = time.monotonic() + _TRIM_SECONDS

    def _update(self, scenario: str, announced_at: float) -> None:
        """Bring the arms of a scenario to what was announced."""
        missing = self._missing_targets(scenario)
        try:
            for target in missing:
                if self._refusals.may_try(scenario, target):
                    self._load_or_fall_back(self._table.open(scenario), target, announced_at)
        except BuildStoppedError:
            self._announcements.requeue(scenario)
            return
        except (RegistryUnavailableError, OSError) as error:
            self._retry_later(scenario, error)
            return
        self._status.answered(scenario, "bundle")
        next_try = self._refusals.next_try(scenario, missing)
        if next_try is not None:
            self._poller.retry_later(scenario, next_try)

    def _missing_targets(self, scenario: str) -> list[Target]:
        """Swap to the models that are held, and return the targets to build."""
        announced = self._announcements.announced(scenario)
        if announced.rollout is None or (announced.latest is None and scenario not in self.scenarios.pinned):
            self._poller.poll(scenario)
            announced = self._announcements.announced(scenario)
        if announced.latest is None and scenario not in self.scenarios.pinned:
            self.scenarios.mark_unpublished(scenario)
            return []
        for dropped in self.scenarios.open(scenario):
            self._next_adapter.drop(dropped)
            self._metrics.rollouts.scenario_dropped(dropped)
            log.info("scenario_let_go", scenario=dropped)
        slot = self._table.open(scenario)
        missing = slot.apply(announced.rollout, announced.latest)
        if slot.is_pinned:
            self._next_adapter.drop(scenario)  # this worker will not serve the next version
        return missing

    def _load_or_fall_back(self, slot: ModelSlot, target: Target, announced_at: float) -> None:
        """Serve a version; if it cannot be loaded and nothing is served yet, the newest older one that can."""
        try:
            self._load(slot, target, announced_at)
        except (BuildStoppedError, RegistryUnavailableError, OSError):
            raise
        except Exception as error:
            self._refuse(slot.scenario, target, error)
            if target.arm == STABLE and slot.deployment.stable is None:
                self._fall_back(slot, target)

    def _load(self, slot: ModelSlot, target: Target, announced_at: float) -> None:
        model = self._factory.make(slot, target.version)  # 2. verified, 3. built, 4. warmed
        self._refusals.remove(slot.scenario, target)
        self._poller.reset_backoff(slot.scenario)
        self._status.bundle_read(slot.scenario)
        if slot.install(target, model):  # 5. swapped
            self._metrics.swap_took(time.perf_counter() - announced_at)
            if target.arm == STABLE and not slot.is_pinned:
                self._next_adapter.start(slot.scenario, model)

    def _fall_back(self, slot: ModelSlot, target: Target) -> None:
        for version in self._bundles.versions_before(slot.scenario, target.version):
            try:
                model = self._factory.make(slot, version)
            except (BuildStoppedError, RegistryUnavailableError, OSError):
                raise
            except Exception as error:
                self._refuse(slot.scenario, Target(STABLE, version), error)
                continue
            if slot.install_fallback(target, model):
                log.warning("older_adapter_served", scenario=slot.scenario, version=version, refused=target.version)
            return

    def _refuse(self, scenario: str, target: Target, error: Exception) -> None:
        """Record a version that cannot be served; an error that is not the bundle's is logged with its traceback."""
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

    def _retry_later(self, scenario: str, error: Exception) -> None:
        """Keep serving, and try again after a pause; an outage is logged once."""
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
        self._poller.retry_later(scenario)
