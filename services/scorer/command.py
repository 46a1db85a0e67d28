"""The command `headwater scorer`."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
from services.scorer.ending import ends_canaries
from services.scorer.following import RegistryFollower
from services.scorer.live_items import LiveItems
from services.scorer.log_reader import LogReader
from services.scorer.refresher import Refresher
from services.scorer.reporting import WorkerReporter, worker_name
from services.scorer.search import Search
from services.scorer.shopper_state import ShopperState, StateSource
from services.scorer.shopper_state_redis import RedisState
from services.scorer.shopper_state_request import RequestState
from services.scorer.worker import Worker
from services.settings import Settings
from services.settings.search import SearchSettings
from services.state.store import StateStore
from services.web.access.install import AccessRules
from services.web.server import serve
from streams.privacy import Pseudonymiser, pseudonymiser

log = structlog.get_logger(__name__)

# How long a build may hold up a request. Python's own 5 ms cost up to 8 ms at the 99th percentile of answers.
SWITCH_SECONDS = 0.001
_Part = LogReader | Worker | CatalogueCheck | RegistryFollower | CanaryMonitor | WorkerReporter | RedisState | Refresher
END_SECONDS = 5.0  # for a thread to notice; a build under way is not waited for


def run(settings: Settings) -> None:
    """Answer rankings until SIGTERM or SIGINT.

    Args:
        settings: All of them.

    Raises:
        KeysError: The keys file cannot be used.
        EncoderError: The encoder cannot be loaded.
        RegistryAddressError: No kind of store is known for the registry's address.
        ServeError: The address cannot be listened on.
        SecretError: The secret that user ids are hidden with cannot be had.
        TemporaryDirectoryError: No temporary directory can be made.
        StateError: Shoppers' states are to come from Redis, and its client is not installed or its address is none.
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
        registry = _registry(settings)
        announcements = Announcements(settings.scenario, metrics)
        check = CatalogueCheck(settings.kafka, settings.topics)
        worker, reader, search = _wired(settings, metrics, registry, announcements, directory, pseudonymise, check)
        follower = RegistryFollower(
            registry,
            announcements,
            poll_seconds=settings.scorer.registry_poll_seconds,
            api_key=settings.registry.plain_key(),
        )
        watch = CanaryMonitor(
            settings.kafka,
            settings.topics,
            deployments=worker.answers.deployments,
            pseudonymise=pseudonymise,
            settings=settings.scorer.canary,
            metrics=metrics.canaries,
            end=ends_canaries(settings, announcements),
        )
        name = worker_name(settings.scorer.port)
        reporter = WorkerReporter(
            settings.scorer.registry_url, worker, name=name, api_key=settings.registry.plain_key()
        )
        followers = [worker.shoppers] if isinstance(worker.shoppers, RedisState) else []
        app = create_app(
            worker, settings.scorer, metrics, series, pseudonymise=pseudonymise, search=search, access=access, name=name
        )
        with _in_threads(reader, worker, follower, watch, check, reporter, *search.refreshers(), *followers):
            serve(app, settings.scorer.host, settings.scorer.port)


def _wired(
    settings: Settings,
    metrics: ScorerMetrics,
    registry: AdapterRegistry,
    announcements: Announcements,
    directory: Path,
    pseudonymise: Pseudonymiser,
    check: CatalogueCheck,
) -> tuple[Worker, LogReader, Search]:
    encoder = Encoder(settings.encoder)
    cache = PrefixCache.from_settings(encoder)
    items = LiveItems(settings.scorer.blocklist)
    shoppers = _shoppers(settings, items, metrics, pseudonymise)
    reader = LogReader(
        settings.kafka,
        settings.topics,
        look_back_events=settings.scorer.state_look_back_events,
        items=items,
        shoppers=shoppers,
        announcements=announcements,
        clock=settings.clock,
    )
    metrics.declare_topics(reader.topics)
    worker = Worker(
        scenario=settings.scenario,
        encoder=encoder,
        catalogue=Catalogue(cache, max_hidden_bytes=settings.scorer.max_hidden_bytes),
        bundles=BundleSource(registry, directory, encoder.base_digest),
        items=items,
        shoppers=shoppers,
        reader=reader,
        announcements=announcements,
        metrics=metrics,
        items_refresh_seconds=settings.scorer.items_refresh_seconds,
        before=PreviousAdapterVectors(directory / "texts", max_bytes=settings.scorer.kept_texts_bytes),
        kept_rows=settings.scorer.kept_rows,
        pinned_scenarios=settings.scorer.pinned_scenarios,
        max_scenarios=settings.scorer.max_scenarios,
        secret_fingerprint=pseudonymise.fingerprint(),
        catalogue_check=check,
    )
    return worker, reader, _search(settings.search, encoder, worker)


def _search(settings: SearchSettings, encoder: Encoder, worker: Worker) -> Search:
    queries = QueryEncoder(encoder, int8=settings.int8_queries, max_queries=settings.max_known_queries)
    return Search(queries, worker.answers, settings)


def _shoppers(settings: Settings, items: LiveItems, metrics: ScorerMetrics, pseudonymise: Pseudonymiser) -> StateSource:
    """Where shoppers' states come from."""
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
def _in_threads(
    *parts: LogReader
    | Worker
    | CatalogueCheck
    | RegistryFollower
    | CanaryMonitor
    | WorkerReporter
    | RedisState
    | Refresher,
) -> Iterator[None]:
    """Run parts beside the serving, and end them after it."""
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
