"""The command `headwater scorer`."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import torch

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import load_verifier
from peft_adapters.serving.previous_adapter_vectors import PreviousAdapterVectors
from services import memory
from services.disks import temporary_directory
from services.metrics.scorer import ScorerMetrics
from services.metrics.series import new_registry
from services.scorer.announcements import Announcements
from services.scorer.app import create_app
from services.scorer.bundles import BundleSource
from services.scorer.canaries import CanaryMonitor
from services.scorer.catalogue_check import CatalogueCheck
from services.scorer.ending import canary_ender
from services.scorer.following import RegistryFollower
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.recommender import Recommender
from services.scorer.refusals import Refusals
from services.scorer.reporting import WorkerReporter, worker_name
from services.scorer.rollout_applier import RolloutApplier
from services.scorer.search import Search
from services.scorer.service import ScoringService
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState, StateSource
from services.scorer.shopper_state_redis import RedisState
from services.scorer.shopper_state_request import RequestState
from services.scorer.swap_report import SwapReporter
from services.scorer.worker import Worker
from services.settings import Settings
from services.state.store import StateStore
from services.web.access.install import AccessRules
from services.web.server import serve
from streams.privacy import Pseudonymiser, pseudonymiser

log = structlog.get_logger(__name__)

# The longest that a build may hold up a request. Python's default of 5 ms costs up to 8 ms at the 99th percentile.
SWITCH_SECONDS = 0.001
END_SECONDS = 5.0  # for a thread to end; a build in progress is not waited for


def run(settings: Settings) -> None:
    """Answer rankings until SIGTERM or SIGINT.

    Args:
        settings: the settings of the process.

    Raises:
        KeysError: the keys file cannot be used.
        EncoderError: the encoder cannot be loaded.
        RegistryAddressError: no kind of store is known for the registry's address.
        ServeError: the address cannot be listened on.
        SecretError: the secret for pseudonyms cannot be read.
        TemporaryDirectoryError: no temporary directory can be made.
        StateError: shoppers' states come from Redis, but its client is not installed or its address is invalid.
    """
    memory.limit_heaps()
    torch.set_num_threads(settings.scorer.torch_threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    log.info("scorer_starting", scenario=settings.scenario, registry_url=settings.scorer.registry_url)
    series = new_registry()
    metrics = ScorerMetrics(series)
    pseudonymise = pseudonymiser(settings.privacy)
    access = AccessRules.from_settings(settings.limits, settings.security)
    with temporary_directory("headwater-scorer-") as directory:
        parts = _assemble(settings, metrics, _registry(settings), directory, pseudonymise)
        name = worker_name(settings.scorer.port)
        app = create_app(parts.service, settings.scorer, metrics, series, search=parts.search, access=access, name=name)
        with _in_threads(*parts.threads, _reporter(settings, parts, name)):
            serve(app, settings.scorer.host, settings.scorer.port)


class _Thread(Protocol):
    """A part that runs in a thread of its own."""

    def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Make `run` return soon."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    service: ScoringService
    search: Search
    threads: Sequence[_Thread]


def _assemble(
    settings: Settings,
    metrics: ScorerMetrics,
    registry: AdapterRegistry,
    directory: Path,
    pseudonymise: Pseudonymiser,
) -> _Parts:
    """Build all parts around one serving table: the worker writes to it, requests read from it."""
    scorer = settings.scorer
    reporter = SwapReporter(metrics, settings.scenario)
    table = ServingTable(settings.scenario, kept_rows=scorer.kept_rows, on_swap=reporter.report)
    refusals, interrupt = Refusals(), threading.Event()
    applier = RolloutApplier(table, refusals, interrupt)
    announcements = Announcements(settings.scenario, metrics, on_rollout=applier.apply)
    encoder = Encoder(settings.encoder)
    cache = PrefixCache.from_settings(encoder)
    queries = QueryEncoder(encoder, int8=settings.search.int8_queries, max_queries=settings.search.max_known_queries)
    items = LiveItems(scorer.blocklist)
    shoppers = shopper_states(settings, items, metrics, pseudonymise)
    recommender = Recommender(items, shoppers, encode_query=queries)
    search = Search(queries, recommender, table, settings.search)
    check = CatalogueCheck(settings.kafka, settings.topics)
    reader = LogReader(
        settings.kafka,
        settings.topics,
        look_back_events=scorer.state_look_back_events,
        items=items,
        shoppers=shoppers,
        announcements=announcements,
        clock=settings.clock,
        pseudonymise=pseudonymise,
    )
    metrics.declare_topics(reader.topics)
    worker = Worker(
        table=table,
        recommender=recommender,
        encoder=encoder,
        catalogue=Catalogue(cache, max_hidden_bytes=scorer.max_hidden_bytes),
        bundles=BundleSource(registry, directory, encoder.base_digest),
        items=items,
        shoppers=shoppers,
        reader=reader,
        announcements=announcements,
        refusals=refusals,
        interrupt=interrupt,
        metrics=metrics,
        items_refresh_seconds=scorer.items_refresh_seconds,
        previous_vectors=PreviousAdapterVectors(directory / "texts", max_bytes=scorer.kept_texts_bytes),
        pinned_scenarios=scorer.pinned_scenarios,
        max_scenarios=scorer.max_scenarios,
        secret_fingerprint=pseudonymise.fingerprint(),
        catalogue_check=check,
    )
    follower = RegistryFollower(
        registry,
        announcements,
        poll_seconds=scorer.registry_poll_seconds,
        api_key=settings.registry.plain_key(),
    )
    monitor = CanaryMonitor(
        settings.kafka,
        settings.topics,
        table=table,
        pseudonymise=pseudonymise,
        settings=scorer.canary,
        metrics=metrics.canaries,
        end=canary_ender(settings, announcements),
    )
    service = ScoringService(
        table=table,
        scenarios=worker.scenarios,
        recommender=recommender,
        shoppers=shoppers,
        health=worker.health,
        pseudonymise=pseudonymise,
    )
    state_threads = [shoppers] if isinstance(shoppers, RedisState) else []
    threads: list[_Thread] = [reader, worker, follower, monitor, check, *search.refreshers(), *state_threads]
    return _Parts(service=service, search=search, threads=threads)


def _reporter(settings: Settings, parts: _Parts, name: str) -> WorkerReporter:
    return WorkerReporter(settings.scorer.registry_url, parts.service, name=name, api_key=settings.registry.plain_key())


def shopper_states(
    settings: Settings, items: LiveItems, metrics: ScorerMetrics, pseudonymise: Pseudonymiser
) -> StateSource:
    """Return the source of shoppers' states that the settings name.

    Args:
        settings: the settings of the process.
        items: the live catalogue.
        metrics: the metrics of the process.
        pseudonymise: replaces the ids of users and sessions.
    """
    state = settings.state
    if state.source == "request":
        return RequestState()
    if state.source == "worker":
        return ShopperState(items.rows, max_shoppers=settings.scorer.max_shoppers, pseudonymise=pseudonymise)
    store = StateStore(state, fingerprint=pseudonymise.fingerprint(), timeout_seconds=state.timeout_seconds)
    return RedisState(store, items.rows, fallback_shoppers=state.fallback_shoppers, metrics=metrics.state)


def _registry(settings: Settings) -> AdapterRegistry:
    return AdapterRegistry(
        settings.scorer.registry_url,
        verify=load_verifier(settings.signing),
        api_key=settings.registry.plain_key(),
        read_seconds=settings.registry.read_seconds,
    )


@contextmanager
def _in_threads(*parts: _Thread) -> Iterator[None]:
    """Run parts in threads of their own, and stop them at the end."""
    threads = [threading.Thread(target=part.run, name=type(part).__name__, daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for part in parts:
            part.stop()
        for thread in threads:
            thread.join(END_SECONDS)
