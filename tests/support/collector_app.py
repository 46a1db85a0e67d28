"""A collector's application over real HTTP, with an unreachable Kafka by default."""

import json
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from services.collector.app import create_app
from services.collector.forwarder import Forwarder
from services.collector.spool import Spool
from services.metrics.collector import CollectorMetrics
from services.settings.collector import CollectorSettings
from services.web.server import running
from streams.connection import KafkaConnection
from streams.topics import Topics

NOWHERE = KafkaConnection(bootstrap_servers="127.0.0.1:1")


@dataclass(frozen=True)
class CollectorApp:
    """A collector application and its parts."""

    client: httpx.Client
    spool: Spool
    forwarder: Forwarder
    series: CollectorRegistry

    def post(self, body: Any) -> httpx.Response:
        headers = {"content-type": "application/json; charset=utf-8"}
        return self.client.post("/v1/events", content=json.dumps(body), headers=headers)

    def value(self, name: str, **labels: str) -> float | None:
        return self.series.get_sample_value(name, labels)

    def counted(self, kind: str) -> dict[str, float | None]:
        return {
            outcome: self.value("headwater_collector_events_total", kind=kind, outcome=outcome)
            for outcome in ("accepted", "rejected", "refused_full")
        }


@contextmanager
def open_collector(
    path: Path, *, connection: KafkaConnection = NOWHERE, topics: Topics | None = None, **settings: Any
) -> Iterator[CollectorApp]:
    ours = CollectorSettings(spool_path=path, **settings)
    series = CollectorRegistry()
    metrics = CollectorMetrics(series)
    with closing(Spool(path, max_events=ours.spool_max_events, max_bytes=ours.spool_max_bytes)) as spool:
        forwarder = Forwarder(spool, connection, topics or Topics(), metrics)
        app = create_app(spool, forwarder, ours, metrics, series)
        with (
            forwarder.running(grace_seconds=ours.flush_grace_seconds),
            running(app) as url,
            httpx.Client(base_url=url) as client,
        ):
            yield CollectorApp(client, spool, forwarder, series)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow past what a few events need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
