"""The loop of a scorer: announced, verified, built, warmed, flipped; what is served goes on meanwhile."""

import sqlite3
import threading
import time

import structlog

from peft_adapters.bundle import Bundle, Manifest
from peft_adapters.catalogue import Catalogue
from peft_adapters.encoder import Encoder
from peft_adapters.errors import BundleError, BundleFormatError, HeadwaterModelError, RegistryError
from peft_adapters.serving import BuildStoppedError, ServedModel, build, refreshed
from services.metrics import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.answers import Answers
from services.scorer.bundles import BundleSource
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.shopper_state import StateSource
from streams.connection import backoff_seconds

log = structlog.get_logger(__name__)

ITEMS_CHUNK = 256  # texts encoded at a time: another process of this host may have done the next ones meanwhile
ITEMS_A_ROUND = 1_024  # so that an adapter never waits long behind a catalogue that changes as a whole


class Worker:
    """Follows the published adapters in one thread; what is served is replaced whole, by one reference.

    Args:
        scenario: Which ranking.
        encoder: Of this thread alone.
        catalogue: The items as the model sees them, of this thread alone; same order as `items`.
        bundles: Where bundles come from.
        items: The live catalogue.
        shoppers: The live states of shoppers.
        reader: Reads the log.
        announcements: What was announced.
        metrics: Where swaps are counted.
        items_refresh_seconds: New items become rankable at most so often between adapters.

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
    ) -> None:
        self.scenario, self.shoppers = scenario, shoppers
        self.answers = Answers(items, shoppers)
        self._encoder, self._catalogue, self._bundles, self._items = encoder, catalogue, bundles, items
        self._reader, self._announcements, self._metrics = reader, announcements, metrics
        self._items_refresh_seconds = items_refresh_seconds
        self._stop = threading.Event()
        self._pauses = backoff_seconds()
        self._items_taken = 0  # and not yet in what is served
        self._away: str | None = None  # what was last said of a registry that does not answer

    def missing(self) -> str | None:
        """What is not there yet for an answer that uses all there is; None when the worker is ready."""
        if not self._reader.catalogue_read.is_set():
            return "the catalogue has not been read yet; is Kafka reachable, and do its topics exist?"
        if self.answers.model is None:
            return f"no adapter of scenario {self.scenario!r} is held yet; has an updater published one?"
        return None if self._reader.caught_up.is_set() else "shoppers' latest events are still being read"

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Follow what is announced until stopped."""
        self._begin()
        while not self._stop.is_set():
            announced = self._announcements.wait(self._items_refresh_seconds)  # 1. announced
            heard = time.perf_counter()
            self._take_items()
            try:
                if announced is None or self._is_served(announced):
                    self._refresh()
                    continue
                model = self._built(announced)  # 2. verified, 3. built
                self.answers.warm(model)  # 4. warmed
            except BuildStoppedError:
                return
            except (RegistryError, OSError) as error:
                self._try_again(announced, error)
            except Exception as error:
                self._refuse(announced, error)
            else:
                self._flip(model)  # 5. flipped
                self._metrics.swap_seconds.observe(time.perf_counter() - heard)

    def _begin(self) -> None:
        """Wait for the catalogue; with nothing announced, ask the registry for its latest."""
        while not self._reader.catalogue_read.wait(0.1) and not self._stop.is_set():
            self._take_items(ITEMS_CHUNK)  # encode while the rest is being read
        self._take_items(len(self._items))
        try:
            latest = self._bundles.latest(self.scenario)
        except (RegistryError, BundleError) as error:
            log.warning("registry_not_asked", problem=str(error))
            return
        if latest is not None:
            self._announcements.put_back(latest)

    def _take_items(self, limit: int = ITEMS_A_ROUND) -> None:
        """Encode items that came or changed, in order of arrival."""
        limit += self._items_taken
        while self._items_taken < limit and not self._stop.is_set():
            items = self._items.take_changes(ITEMS_CHUNK)
            if not items:
                return
            try:
                self._catalogue.upsert(items)
            except sqlite3.Error as error:  # the disk of the cache: the same items are tried again in the next round
                self._items.give_back(items)
                log.warning("items_not_encoded", problem=str(error), items=len(items))
                return
            self._items_taken += len(items)

    def _is_served(self, announced: Manifest) -> bool:
        model = self.answers.model
        return model is not None and model.manifest.digest == announced.digest and model.version == announced.version

    def _built(self, announced: Manifest) -> ServedModel:
        """The announced version: by deltas on what is served where they fit, else from its last full bundle."""
        served = self.answers.model
        bundles = self._bundles.fetch(announced, served)
        try:
            return self._build(bundles, served)
        except BundleFormatError as error:
            if bundles[0].manifest.kind == "full":
                raise
            log.warning("delta_does_not_fit", problem=str(error), remedy="building from the last full bundle")
        return self._build(self._bundles.fetch(announced, None), served)

    def _build(self, bundles: list[Bundle], served: ServedModel | None) -> ServedModel:
        return build(bundles, previous=served, catalogue=self._catalogue, encoder=self._encoder, stop=self._stop)

    def _refresh(self) -> None:
        """Serve the same version over the items as they are now."""
        model = self.answers.model
        if model is not None and self._items_taken:
            self._serve(refreshed(model, catalogue=self._catalogue, encoder=self._encoder, stop=self._stop))

    def _flip(self, model: ServedModel) -> None:
        self._serve(model)
        self._pauses, self._away = backoff_seconds(), None
        manifest = model.manifest
        self._metrics.swaps.labels("swapped").inc()
        self._metrics.adapter.stand_at(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )
        log.info("adapter_served", scenario=self.scenario, version=manifest.version, items=len(model))

    def _serve(self, model: ServedModel) -> None:
        """Replace the one reference: requests under way end on the model that they began with."""
        self.answers.model = model
        self._items_taken = 0
        self._metrics.items.set(int(model.has_text.sum()))
        self._tell_unused(model.unused_vectors)

    def _tell_unused(self, vectors: int) -> None:
        if vectors:
            log.warning("vectors_not_used", vectors=vectors, why="another length than the adapter takes")
        self._metrics.unused_vectors.set(vectors)

    def _refuse(self, announced: Manifest | None, error: Exception) -> None:
        """Go on with what is served; a fault that is not the bundle's own is told with its traceback."""
        if announced is None:
            log.error("items_not_refreshed", problem=str(error), exc_info=error)
            return
        self._metrics.swaps.labels("refused").inc()
        log.warning(
            "adapter_refused",
            scenario=self.scenario,
            version=announced.version,
            problem=str(error),
            exc_info=None if isinstance(error, HeadwaterModelError) else error,
        )

    def _try_again(self, announced: Manifest | None, error: Exception) -> None:
        """Go on with what is served, and have another try later; said once an outage."""
        if self._away is None:
            log.warning("registry_lost", problem=str(error), retry="until it answers")
        self._away = str(error)
        if announced is not None:
            self._announcements.put_back(announced)
        self._stop.wait(next(self._pauses))
