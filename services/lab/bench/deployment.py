"""Deployments to measure: one that runs already, or one started on the bundled sample."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from peft_adapters.registry import internal_http
from peft_adapters.registry.registry import AdapterRegistry
from services.lab.bench.driver import Server
from services.lab.bench.errors import BenchError
from services.settings import Settings
from streams.delivery import Delivery
from streams.events import Event, Item
from streams.offsets import partition_name
from streams.producer import EventProducer

LEARNT_WITHIN_SECONDS = 240.0
PROBE_TIMEOUT_SECONDS = 5.0
HISTORY_EVENTS = 8_000  # events learnt before the measurement


@dataclass(frozen=True, slots=True)
class BenchDeployment:
    """A deployment to measure.

    Attributes:
        server: a scorer of the deployment.
        settings: settings with its Kafka and topics.
        registry_url: URL of its registry.
        items: its catalogue, as far as the source of the requests has it.
        past: events that it has learnt, if it was started here.
        coming: events that may be published to it.
    """

    server: Server
    settings: Settings
    registry_url: str
    items: Sequence[Item]
    past: Sequence[Event]
    coming: Sequence[Event]

    def ready(self) -> dict[str, Any]:
        """Return the scorer's answer to `/readyz`.

        Raises:
            BenchError: the scorer does not answer, or is not ready.
        """
        try:
            answer = self._get("/readyz")
        except httpx.HTTPError as error:
            raise BenchError(f"{self.server.url} does not answer: {error}; is a scorer up there?") from error
        if not answer.is_success:
            raise BenchError(f"the scorer at {self.server.url} is not ready: {answer.text[:300]}")
        readiness: dict[str, Any] = answer.json()
        return readiness

    def _get(self, path: str) -> httpx.Response:
        return internal_http.get(f"{self.server.url}{path}", headers=self.server.headers, timeout=PROBE_TIMEOUT_SECONDS)

    def memory_bytes(self) -> int | None:
        """Return the resident memory of the scorer from its `/metrics`, or None if it is not there."""
        try:
            page = self._get("/metrics")
        except httpx.HTTPError:
            return None
        for line in page.text.splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return int(float(line.split()[1]))
        return None

    def wait_until_learnt(self, published: Mapping[str, int]) -> None:
        """Wait until the scorer answers from an adapter that has learnt everything published.

        Args:
            published: next offset by ``"topic/partition"``.

        Raises:
            BenchError: it takes more than 240 s.
        """
        registry, scenario = AdapterRegistry(self.registry_url), self.settings.scenario
        deadline = time.monotonic() + LEARNT_WITHIN_SECONDS
        while time.monotonic() < deadline:
            learnt = registry.manifest(scenario, int(self.ready()["adapter_version"])).offsets
            if all(learnt.get(partition, 0) >= offset for partition, offset in published.items()):
                return
            time.sleep(0.25)
        raise BenchError(f"not all was learnt within {LEARNT_WITHIN_SECONDS:.0f} s; is the machine much too busy?")


@contextmanager
def sample_deployment(
    settings: Settings, items: Sequence[Item], events: Sequence[Event], report: Callable[[str], None]
) -> Iterator[BenchDeployment]:
    """Start broker, registry, updater and one scorer, let them learn the first events, and stop them at the end.

    Args:
        settings: settings with the scenario, the encoder and whatever else the user has set.
        items: the catalogue to publish.
        events: the events in order.
        report: called with a description of each step.

    Raises:
        BenchError: a part did not start.
    """
    from services.lab.demo.deployment import demo_deployment
    from services.lab.demo.errors import DemoError

    past, coming = events[:HISTORY_EVENTS], events[HISTORY_EVENTS:]
    with ExitStack() as undo:
        directory = Path(undo.enter_context(TemporaryDirectory(prefix="headwater-bench-")))
        try:
            deployed = undo.enter_context(demo_deployment(settings, directory, items, report, scorers=1))
        except DemoError as error:
            raise BenchError(str(error)) from error
        report(f"learning {len(past):,} events")
        published: dict[str, int] = {}

        def note(delivery: Delivery) -> None:
            if delivery.partition is not None and delivery.offset is not None:
                partition = partition_name(delivery.topic, delivery.partition)
                published[partition] = max(published.get(partition, 0), delivery.offset + 1)

        with EventProducer(deployed.settings.kafka, deployed.settings.topics, on_delivery=note) as producer:
            for event in past:
                producer.send(event)
        deployment = BenchDeployment(
            Server(deployed.scorer_urls[0]),
            deployed.settings,
            str(deployed.registry_dir),
            items=items,
            past=past,
            coming=coming,
        )
        deployment.wait_until_learnt(published)
        yield deployment
