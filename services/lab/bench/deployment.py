"""What is measured: a deployment that is up, or one set up for it on the bundled sample."""

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

SETTLES_WITHIN_SECONDS = 240.0
PROBE_TIMEOUT_SECONDS = 5.0
HISTORY_EVENTS = 8_000  # learnt before a deployment of our own is measured


@dataclass(frozen=True, slots=True)
class BenchDeployment:
    """What is measured.

    Attributes:
        server: A scorer.
        settings: With its Kafka and topics.
        registry_url: Its store of adapters.
        items: Its catalogue, as far as the source of the requests has it.
        past: Events that it has seen, where it is our own.
        coming: Events that may be published to it.
    """

    server: Server
    settings: Settings
    registry_url: str
    items: Sequence[Item]
    past: Sequence[Event]
    coming: Sequence[Event]

    def ready(self) -> dict[str, Any]:
        """What `/readyz` says.

        Raises:
            BenchError: It does not say that the scorer is ready.
        """
        try:
            answer = self._get("/readyz")
        except httpx.HTTPError as error:
            raise BenchError(f"{self.server.url} does not answer: {error}; is a scorer up there?") from error
        if not answer.is_success:
            raise BenchError(f"the scorer at {self.server.url} is not ready: {answer.text[:300]}")
        told: dict[str, Any] = answer.json()
        return told

    def _get(self, path: str) -> httpx.Response:
        return internal_http.get(f"{self.server.url}{path}", headers=self.server.headers, timeout=PROBE_TIMEOUT_SECONDS)

    def memory_bytes(self) -> int | None:
        """Resident memory of the scorer, as its `/metrics` say; None where they do not."""
        try:
            page = self._get("/metrics")
        except httpx.HTTPError:
            return None
        for line in page.text.splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return int(float(line.split()[1]))
        return None

    def settle(self, published: Mapping[str, int]) -> None:
        """Waits until the scorer answers from an adapter that has learnt all that was published.

        Args:
            published: By ``"topic/partition"`` the next offset.

        Raises:
            BenchError: It takes too long.
        """
        registry, scenario = AdapterRegistry(self.registry_url), self.settings.scenario
        deadline = time.monotonic() + SETTLES_WITHIN_SECONDS
        while time.monotonic() < deadline:
            learnt = registry.manifest(scenario, int(self.ready()["adapter_version"])).offsets
            if all(learnt.get(partition, 0) >= offset for partition, offset in published.items()):
                return
            time.sleep(0.25)
        raise BenchError(f"not all was learnt within {SETTLES_WITHIN_SECONDS:.0f} s; is the machine much too busy?")


@contextmanager
def own_deployment(
    settings: Settings, items: Sequence[Item], events: Sequence[Event], say: Callable[[str], None]
) -> Iterator[BenchDeployment]:
    """Broker, registry, updater and one scorer, which have learnt the first events; gone in the end.

    Args:
        settings: Scenario, encoder and whatever else the user has set.
        items: The catalogue.
        events: In order.
        say: Told what is under way.

    Raises:
        BenchError: Something did not come up.
    """
    from services.lab.demo.errors import DemoError
    from services.lab.demo.stage import stage

    past, coming = events[:HISTORY_EVENTS], events[HISTORY_EVENTS:]
    with ExitStack() as undo:
        directory = Path(undo.enter_context(TemporaryDirectory(prefix="headwater-bench-")))
        try:
            up = undo.enter_context(stage(settings, directory, items, say, scorers=1))
        except DemoError as error:
            raise BenchError(str(error)) from error
        say(f"learning {len(past):,} events")
        published: dict[str, int] = {}

        def note(delivery: Delivery) -> None:
            if delivery.partition is not None and delivery.offset is not None:
                partition = partition_name(delivery.topic, delivery.partition)
                published[partition] = max(published.get(partition, 0), delivery.offset + 1)

        with EventProducer(up.settings.kafka, up.settings.topics, on_delivery=note) as producer:
            for event in past:
                producer.send(event)
        deployment = BenchDeployment(
            Server(up.scorer_urls[0]), up.settings, str(up.registry_dir), items=items, past=past, coming=coming
        )
        deployment.settle(published)
        yield deployment
