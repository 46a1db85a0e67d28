"""Deployment of the demo: broker, topics, catalogue and the real processes, stopped in the right order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from kafka import KafkaAdminClient
from pydantic import BaseModel

from services.lab.demo.processes import Child, environment, stop_all, wait_ready
from services.settings import Settings
from streams.connection import KafkaConnection, open_client
from streams.embedded_broker import EmbeddedBroker
from streams.events import Item
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics
from streams.topics import Topics

SCORERS = 2
START_TIMEOUT_SECONDS = 60.0
# Seven processes may share two cores, and every scorer encodes the whole catalogue for each published LoRA: step LoRA
# about a fifth as often as the defaults do.
LIGHT_LEARNING = {"lora_every_events": 512}
# The sample is real orders of an established shop whose users are unknown to the guard, and every one is to be learnt.
TRUSTED_DATA = {
    name: 1_000_000 for name in ("burst_events", "user_item_hour_events", "user_hour_events", "item_hour_events")
}
Section = TypeVar("Section", bound=BaseModel)
READY_TIMEOUT_SECONDS = 240.0  # the first run encodes the whole catalogue


@dataclass(frozen=True, slots=True)
class DemoDeployment:
    """A running deployment.

    Attributes:
        settings: settings of the processes, with the broker's address.
        registry_dir: directory of the registry.
        registry_url: URL of the registry process.
        metrics_url: URL of the updater's metrics page.
        scorer_urls: URLs of the scorers.
        children: the processes, in the order started.
    """

    settings: Settings
    registry_dir: Path
    registry_url: str
    metrics_url: str
    scorer_urls: list[str]
    children: list[Child]

    def check(self) -> None:
        """Check that all processes run.

        Raises:
            DemoError: a process has ended.
        """
        for child in self.children:
            child.check()


@contextmanager
def demo_deployment(
    settings: Settings, directory: Path, items: Sequence[Item], report: Callable[[str], None], *, scorers: int = SCORERS
) -> Iterator[DemoDeployment]:
    """Start a deployment, and stop it at the end: the processes first, the broker last.

    Args:
        settings: settings of the demo.
        directory: directory for all files.
        items: the catalogue to publish.
        report: called with a description of each step.
        scorers: number of scorers.

    Raises:
        DemoError: a process did not start.
        HeadwaterStreamError: the broker did not start.
    """
    settings = settings.model_copy(
        update={"learner": _with(settings.learner, LIGHT_LEARNING), "guard": _with(settings.guard, TRUSTED_DATA)}
    )
    with ExitStack() as undo:
        report("creating topics on the Kafka given" if _is_given(settings) else "starting the broker")
        settings = undo.enter_context(_broker(settings, directory / "broker"))
        report(f"publishing the catalogue, {len(items):,} items")
        with EventProducer(settings.kafka, settings.topics) as producer:
            for item in items:
                producer.send(item)
        children: list[Child] = []
        undo.callback(stop_all, children)
        report(f"starting registry, updater and scorers ({scorers})")
        deployment = _start(settings, directory, children, scorers)
        report("waiting for the first adapter; a first run encodes every item's text, later ones remember")
        wait_ready(deployment.scorer_urls, children=children, timeout_seconds=READY_TIMEOUT_SECONDS)
        yield deployment


def _with(section: Section, values: Mapping[str, object]) -> Section:
    """Return a section of the settings with these values, except where the user has set one."""
    return section.model_copy(
        update={name: value for name, value in values.items() if name not in section.model_fields_set}
    )


def _start(settings: Settings, directory: Path, children: list[Child], count: int) -> DemoDeployment:
    """Start the processes; `children` holds those already started if a later one fails."""
    log_dir, registry_dir = directory / "logs", directory / "registry"
    log_dir.mkdir()
    variables = environment(settings)

    def start(name: str, *arguments: str) -> Child:
        child = Child(name, arguments, environment=variables, log_dir=log_dir)
        children.append(child)
        return child.start()

    store = ("--registry-url", str(registry_dir))
    registry = start("registry", "registry", *store, "--port", "0")
    checkpoints = ("--checkpoint-dir", str(directory / "checkpoints"))
    updater = start("updater", "updater", *store, *checkpoints, "--metrics-port", "0")
    registry_url = registry.url(timeout_seconds=START_TIMEOUT_SECONDS)
    served = ("--registry-url", f"{registry_url}/v1/files")
    scorers = [start(f"scorer-{n}", "scorer", *served, "--port", "0") for n in range(1, count + 1)]
    return DemoDeployment(
        settings=settings,
        registry_dir=registry_dir,
        registry_url=registry_url,
        metrics_url=f"{updater.url(timeout_seconds=START_TIMEOUT_SECONDS)}/metrics",
        scorer_urls=[scorer.url(timeout_seconds=START_TIMEOUT_SECONDS) for scorer in scorers],
        children=children,
    )


@contextmanager
def _broker(settings: Settings, data_dir: Path) -> Iterator[Settings]:
    """Yield settings with a broker and its topics: an embedded one, or new topics on the broker that the user named."""
    if _is_given(settings):
        with _guest_topics(settings.kafka) as topics:
            yield settings.model_copy(update={"topics": topics})
        return
    with EmbeddedBroker(data_dir) as broker:
        kafka = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        ensure_topics(kafka, settings.topics, bounded=True)
        yield settings.model_copy(update={"kafka": kafka})


def _is_given(settings: Settings) -> bool:
    return "bootstrap_servers" in settings.kafka.model_fields_set


@contextmanager
def _guest_topics(kafka: KafkaConnection) -> Iterator[Topics]:
    """Create topics with a unique prefix, and delete them at the end."""
    prefix = f"headwater-demo-{token_hex(4)}"
    topics = Topics.under(prefix)
    created = ensure_topics(kafka, topics)
    try:
        yield topics
    finally:
        admin = open_client(KafkaAdminClient, kafka)
        try:
            admin.delete_topics(created)
        finally:
            admin.close()
