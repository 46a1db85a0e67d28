"""A scorer's worker on a registry in a directory, with Kafka spoken for by hand."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learnt_chain import Publications
from prometheus_client import CollectorRegistry
from tiny_model import titled
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import RegistryUnavailableError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.bundle import Manifest, read_manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors
from services.metrics.scorer import ScorerMetrics
from services.scorer.announcements import Announcements
from services.scorer.bundles import BundleSource
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.recommender import Recommender
from services.scorer.refusals import Refusals
from services.scorer.rollout_applier import RolloutApplier
from services.scorer.service import ScoringService
from services.scorer.serving_table import KEPT_ROWS, ServingTable
from services.scorer.shopper_state import ShopperState
from services.scorer.swap_report import SwapReporter
from services.scorer.worker import Worker
from streams.connection import KafkaConnection
from streams.events import Item
from streams.topics import Topics

ITEMS = titled(12)


class RecordingRegistry(AdapterRegistry):
    """Notes which versions are fetched; while it is away it answers nothing."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fetched: list[int] = []
        self.away = False
        self.asked = 0

    def manifest(self, scenario: str, version: int) -> Manifest:
        self.asked += 1
        if self.away:
            raise RegistryUnavailableError("away")
        return super().manifest(scenario, version)

    def rollout(self, scenario: str) -> Rollout:
        self.asked += 1
        if self.away:
            raise RegistryUnavailableError("away")
        return super().rollout(scenario)

    def fetch(self, scenario: str, version: int, destination: Path) -> Path:
        self.fetched.append(version)
        return super().fetch(scenario, version, destination)


class FullDisk(PrefixCache):
    """Fails as often as it is told to."""

    failures = 0

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        if self.failures > 0:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return super().get(texts)


class Stage:
    """A worker on a registry in a directory, and an updater's publications; Kafka is spoken for by hand."""

    def __init__(self, directory: Path, encoder: Encoder, **worker: Any) -> None:
        self.directory = directory
        self.registry = RecordingRegistry(str(directory / "registry"))
        self.series = CollectorRegistry()
        self.items = LiveItems()
        self.cache = FullDisk(encoder, None)
        metrics = ScorerMetrics(self.series)
        kept_rows = worker.pop("kept_rows", KEPT_ROWS)
        reporter = SwapReporter(metrics, "home")
        self.table = ServingTable("home", kept_rows=kept_rows, on_swap=reporter.report)
        refusals, interrupt = Refusals(), threading.Event()
        applier = RolloutApplier(self.table, refusals, interrupt)
        self.announcements = Announcements("home", metrics, on_rollout=applier.apply)
        shoppers = ShopperState(self.items.rows, max_shoppers=10, pseudonymise=str)
        self.reader = LogReader(
            KafkaConnection(),
            Topics(),
            look_back_events=0,
            items=self.items,
            shoppers=shoppers,
            announcements=self.announcements,
        )
        self.recommender = Recommender(self.items, shoppers)
        self.catalogue = Catalogue(self.cache)
        self.bundles = BundleSource(self.registry, directory / "bundles", encoder.base_digest)
        self.worker = Worker(
            table=self.table,
            recommender=self.recommender,
            encoder=encoder,
            catalogue=self.catalogue,
            bundles=self.bundles,
            items=self.items,
            shoppers=shoppers,
            reader=self.reader,
            announcements=self.announcements,
            refusals=refusals,
            interrupt=interrupt,
            metrics=metrics,
            items_refresh_seconds=0.02,
            previous_vectors=PreviousAdapterVectors(directory / "texts", max_bytes=2**20),
            **worker,
        )
        self.health = self.worker.health
        self.service = ScoringService(
            table=self.table,
            scenarios=self.worker.scenarios,
            recommender=self.recommender,
            shoppers=shoppers,
            health=self.health,
            pseudonymise=str,
        )
        for item_id, text in ITEMS:
            self.item(item_id, text)
        self.publications = self.new_publications("made")

    def new_publications(self, name: str) -> Publications:
        publications = Publications(self.directory / name)
        publications.learner.add_items(ITEMS)
        return publications

    def item(self, item_id: str, text: str, **fields: Any) -> None:
        self.items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text, **fields))

    def publish(self, version: int, *, full: bool = False, announce: bool = True) -> Manifest:
        self.publications.learn(16)
        directory = self.publications.full(version) if full else self.publications.delta(version)
        manifest = read_manifest(directory)
        self.registry.publish(directory, manifest)
        if announce:
            self.announcements.update_latest(manifest)
        return manifest

    def count(self, outcome: str) -> float:
        return self.series.get_sample_value("headwater_swaps_total", {"outcome": outcome}) or 0

    @property
    def version(self) -> int | None:
        model = self.table.model
        return None if model is None else model.version

    @contextmanager
    def running(self) -> Iterator[None]:
        self.reader.catalogue_read.set()
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
        finally:
            self.worker.stop()
            thread.join(30)
            assert not thread.is_alive()


def until(holds: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
