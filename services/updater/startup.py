"""The start of an updater: resume from a checkpoint, start warm, or read the catalogue first."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

import structlog

from peft_adapters.errors import CheckpointError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.lifecycle.publishing import Publisher
from peft_adapters.lifecycle.warm_start import start_from
from peft_adapters.registry.ownership import Owner
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import load_signer
from services.metrics.log import ConsumedLogMetrics
from services.settings import Settings
from services.updater.checkpoint_store import CheckpointStore
from services.updater.intake import Intake
from services.updater.log_metrics import LogMetrics
from services.updater.quality_monitor import QualityMonitor
from services.updater.source import JournaledSlice, SliceRecorder, open_consumer, slice_reader
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.offsets import Offsets, decode_offsets

log = structlog.get_logger(__name__)

_READ_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Position:
    """The end of the newest learnt slice.

    Attributes:
        offsets: the next offset of each partition; empty before the first slice.
        topic_ids: the ids of the topics that the offsets belong to.
    """

    offsets: Offsets = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)


class Startup:
    """Start of an updater from the newest checkpoint, from an offline fit, or from nothing.

    Args:
        settings: the updater's settings.
        store: the checkpoint store.
        learner: the fresh learner to load into.
        intake: the fresh intake to restore.
        quality: the fresh quality monitor to restore.
        fingerprint: the fingerprint of the secret that pseudonyms are made with.
    """

    def __init__(
        self,
        settings: Settings,
        store: CheckpointStore,
        learner: Learner,
        intake: Intake,
        quality: QualityMonitor,
        *,
        fingerprint: str,
    ) -> None:
        self._settings, self._store, self._fingerprint = settings, store, fingerprint
        self._learner, self._intake, self._quality = learner, intake, quality

    def load(self) -> Position:
        """Resume from the newest checkpoint; without one, start from an offline fit if there is one.

        Returns:
            The position of the checkpoint; without one, the start of the log.

        Raises:
            CheckpointError: the checkpoint or the fit cannot be used, or was made with another secret.
        """
        saved = self._store.load(self._learner)
        if saved is None:
            self._start_warm()
            return Position()
        state, tensors = saved
        if state["pseudonyms"] != self._fingerprint:
            raise CheckpointError(
                "`privacy.secret` must be the one that the checkpoint was made with, got another: its shoppers would "
                "not be known again; put the secret back, or start in an empty directory"
            )
        self._intake.restore(state["intake"])
        self._quality.load_state_dict(tensors, state)
        log.info(
            "resumed",
            events_learned=self._learner.events_learned,
            offsets=state["offsets"],
            slices_to_repeat=len(self._store.journal.to_replay),
        )
        # Checkpoints of earlier releases have no topic ids.
        return Position(decode_offsets(state["offsets"]), state.get("topic_ids", {}))

    def _start_warm(self) -> None:
        """Start from an offline fit, if the settings name one."""
        directory = self._settings.updater.start_from
        if directory is None:
            return
        state = start_from(self._learner, directory)
        if state is not None and state["pseudonyms"] != self._fingerprint:
            raise CheckpointError(
                "`privacy.secret` must be the one that the fit was made with, got another: its shoppers would not be "
                "known again; put the secret back, or fit again with this one"
            )
        self._quality.gate.anchor()
        log.info("started_warm", directory=str(directory), events_learned=self._learner.events_learned)

    def catalogue(
        self, recorder: SliceRecorder, metrics: ConsumedLogMetrics, stop: threading.Event
    ) -> Generator[JournaledSlice]:
        """Read the items topic to its end, and yield it in slices; wait for the topic if it does not exist.

        Args:
            recorder: the recorder that journals each slice before it is yielded.
            metrics: the metrics of the topic while it is read.
            stop: an event that ends the wait.
        """
        topics = [self._settings.topics.items]
        with closing(open_consumer(self._settings, topics, {}, {})) as consumer:
            reader = slice_reader(self._settings, consumer, self._intake)
            log_metrics = LogMetrics(consumer, metrics, topics)
            while not stop.is_set() and not _is_read(consumer):
                log_metrics.export(reader.waiting)
                reader.read(_READ_SECONDS)
            while (slice_ := reader.flush()) is not None:
                yield recorder.record(slice_)


def open_publisher(
    settings: Settings, store: CheckpointStore, learner: Learner, gate: Gate, *, fingerprint: str
) -> Publisher:
    """Return a publisher to the registry, in the name of the checkpoint store's lineage and epoch.

    Args:
        settings: the updater's settings.
        store: the checkpoint store.
        learner: the learner whose state is published.
        gate: the gate that judges candidates.
        fingerprint: the fingerprint of the secret that pseudonyms are made with.
    """
    updater = settings.updater
    return Publisher(
        learner,
        AdapterRegistry(updater.registry_url),
        scenario=settings.scenario,
        owner=Owner(lineage=store.lineage, epoch=store.epoch),
        staging=updater.checkpoint_dir / "staging",
        gate=gate,
        snapshot_every=updater.snapshot_every,
        retention=updater.retention,
        secret_fingerprint=fingerprint,
        sign=load_signer(settings.signing),
    )


def _is_read(consumer: PartitionConsumer) -> bool:
    """Return whether all existing records have been read; False as long as that is not known."""
    try:
        return not consumer.problems() and consumer.has_reached(consumer.end_offsets())
    except HeadwaterStreamError:  # the consumer itself reports what is wrong
        return False
