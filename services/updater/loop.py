"""The updater's loop: consume, score, learn, checkpoint, gate, publish, commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from peft_adapters.catalogue import Catalogue
from peft_adapters.checkpoint import load_checkpoint, save_checkpoint
from peft_adapters.encoder import Encoder
from peft_adapters.errors import BundleDigestError, RegistryUnavailableError, VersionConflictError
from peft_adapters.evaluation import Prequential
from peft_adapters.gate import GateSettings
from peft_adapters.learner import Learner
from peft_adapters.manifest import Manifest, manifest_bytes
from peft_adapters.prefix_cache import PrefixCache
from peft_adapters.publishing import Publisher
from peft_adapters.registry import AdapterRegistry
from services.metrics import UpdaterMetrics
from services.settings import Settings
from services.updater.intake import Intake
from streams.consumer import Offsets, PartitionConsumer
from streams.dead_letters import DeadLetter, DeadLetterWriter
from streams.errors import DeliveryError, HeadwaterStreamError
from streams.joiner import Example
from streams.microbatch import MicroBatcher
from streams.producer import EventProducer

log = structlog.get_logger(__name__)

_LAG_SECONDS = 2.0  # how often the lag is asked for
_ANNOUNCE_SECONDS = 10.0  # within the grace that a process is given to end
_WORTH_ANOTHER_TRY = (RegistryUnavailableError, BundleDigestError, VersionConflictError, HeadwaterStreamError, OSError)


class Updater:
    """One scenario's updater. `run` is the loop, `_learn` and `_checkpoint_and_publish` its two halves.

    Args:
        settings: all of them.
        metrics: where to count.
        stop: set it, and the loop ends after the step it is in.
    """

    def __init__(self, settings: Settings, metrics: UpdaterMetrics, stop: threading.Event) -> None:
        own = settings.updater
        self._settings, self._own, self._metrics, self._stop = settings, own, metrics, stop
        encoder = Encoder(settings.encoder)
        self.learner = Learner(encoder, Catalogue(PrefixCache.of(encoder)), settings.learner)
        self._prequential = Prequential(seed=settings.learner.seed)
        self._intake = Intake(self.learner, settings.topics, own)
        self._batcher = MicroBatcher(
            max_events=own.batch_events, max_age_seconds=own.batch_seconds, max_bytes=own.batch_bytes
        )
        self._publisher = Publisher(
            self.learner,
            AdapterRegistry(own.registry_url),
            scenario=settings.scenario,
            staging=own.checkpoint_dir / "staging",
            gate=GateSettings(),
            snapshot_every=own.snapshot_every,
            keep_versions=own.keep_versions,
        )
        self._offsets: Offsets = {}
        self._checkpointed: Offsets = {}
        self._unpublished = True  # a version that has learnt nothing is worth publishing: scorers can begin
        self._next_publication = self._next_lag = 0.0  # monotonic seconds

    # ---- the loop

    def run(self) -> None:
        """Learn until told to stop.

        Raises:
            BrokerUnreachableError: no broker answered at the start.
            CheckpointError: the checkpoint cannot be gone on from.
        """
        self._letters = DeadLetterWriter(self._settings.kafka, self._settings.topics)
        self._announcer = EventProducer(self._settings.kafka)
        self._resume()
        self._consumer = self._open(self._intake.topics)
        log.info("updater_started", items=len(self.learner.catalogue), events_learned=self.learner.events_learned)
        while not self._done():
            for record in self._consumer.poll(timeout_seconds=0.05):
                for taken in self._intake.take(record):
                    if isinstance(taken, DeadLetter):
                        self._letters.write(taken)
                    else:
                        example, size_bytes = taken
                        self._batcher.add(example, size_bytes=size_bytes, now=time.monotonic())
                self._offsets[record.topic, record.partition] = record.offset + 1
                self._learn_when_ready()
                if self._done():
                    break  # what else was fetched is read again at the next start
            self._learn_when_ready()
            self._publish_when_due()
            self._export()
        self._finish()

    def _done(self) -> bool:
        limit = self._own.max_events
        return self._stop.is_set() or (limit is not None and self.learner.events_learned >= limit)

    def _learn_when_ready(self) -> None:
        while self._batcher.ready(time.monotonic()):
            self._learn(self._batcher.take())
            while self._due() and len(self._batcher):
                self._learn(self._batcher.take())  # left over from a batch closed by bytes; see below
            self._publish_when_due()

    def _learn(self, examples: list[Example]) -> None:
        with self._metrics.learn_seconds.time():
            batch = self.learner.observe(examples)
            self._prequential.update(batch, self.learner.judge(batch))  # judged before it is learnt
            self.learner.learn(batch)
        self._intake.learnt(examples)
        self._metrics.batches.inc()
        self._unpublished = True

    def _publish_when_due(self) -> None:
        # Only between batches: what waits in the batcher is read, and in no checkpoint.
        if self._due() and len(self._batcher) == 0:
            self._next_publication = time.monotonic() + self._own.publish_seconds
            self._checkpoint_and_publish()

    def _due(self) -> bool:
        return self._is_behind() and time.monotonic() >= self._next_publication

    def _is_behind(self) -> bool:
        """Whether something was learnt and not published, or read (refused, a duplicate, an item) and not kept."""
        return self._unpublished or self._offsets != self._checkpointed

    def _checkpoint_and_publish(self) -> None:
        """The order is the guarantee.

        1. The batch is learnt (done). 2. Checkpoint: model, counts and the offsets they came from; what was refused is
        safe on the dead-letter topic before. Where something was learnt: 3. Gate. 4. Publish: bundle to the registry,
        then the announcement. 5. Commit the offsets to Kafka, for lag tools only.
        """
        with self._metrics.checkpoint_seconds.time():
            self._checkpoint()
        if self._unpublished and not self._publish():
            return
        self._consumer.commit(self._offsets)

    def _publish(self) -> bool:
        """Publish what was learnt, unless the gate refuses it; False where registry or broker failed."""
        with self._metrics.publish_seconds.time():
            try:
                self._gate_and_publish()
            except _WORTH_ANOTHER_TRY as error:
                # Learning goes on; what is unpublished goes with the next publication.
                log.warning("publication_failed", problem=str(error), retry_seconds=self._own.publish_seconds)
                return False
        self._unpublished = False
        return True

    # ---- its steps

    def _checkpoint(self) -> None:
        self._letters.flush()
        extra = {
            "offsets": _by_name(self._offsets),
            "intake": self._intake.state(),
            "prequential": self._prequential.state(),
        }
        number = save_checkpoint(self._checkpoint_root, self.learner, extra)
        self._checkpointed = dict(self._offsets)
        log.debug("checkpoint_saved", number=number, events_learned=self.learner.events_learned)

    def _gate_and_publish(self) -> None:
        directory, manifest = self._publisher.candidate(
            offsets=_by_name(self._offsets),
            watermark_ms=self._intake.watermark_ms,
            metrics=self._prequential.values(),
        )
        if manifest.gate["decision"] == "refused":
            self._publisher.keep_refused(directory, manifest)
            self._metrics.adapters.labels("refused").inc()
            log.error("adapter_refused", version=manifest.version, reasons=manifest.gate["reasons"])
            return
        self._publisher.publish(directory, manifest)
        self._announce(manifest)
        self._metrics.adapters.labels("published").inc()
        self._metrics.adapter.stand_at(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )

    def _announce(self, manifest: Manifest) -> None:
        topic, key = self._settings.topics.adapters, manifest.scenario.encode()
        try:
            self._announcer.send_raw(topic, key, manifest_bytes(manifest))
            self._announcer.flush(timeout_seconds=_ANNOUNCE_SECONDS)
        except DeliveryError:
            with suppress(DeliveryError):  # after a failure an idempotent producer delivers nothing more
                self._announcer.close(timeout_seconds=0)
            self._announcer = EventProducer(self._settings.kafka)
            raise

    # ---- start and end

    def _resume(self) -> None:
        """Go on from the newest checkpoint; without one, read the catalogue that is there before any event."""
        saved = load_checkpoint(self._checkpoint_root, self.learner)
        if saved is not None:
            self._offsets = _by_partition(saved["offsets"])
            self._checkpointed = dict(self._offsets)
            self._intake.restore(saved["intake"])
            self._prequential.restore(saved["prequential"])
            log.info("resumed", events_learned=self.learner.events_learned, offsets=saved["offsets"])
            return
        consumer = self._open([self._settings.topics.items])
        try:
            for letter in self._intake.take_catalogue(_to_the_end(consumer, self._stop)):
                self._letters.write(letter)
            self._offsets = consumer.positions()
        finally:
            consumer.close()

    def _open(self, topics: list[str]) -> PartitionConsumer:
        return PartitionConsumer(
            self._settings.kafka,
            topics,
            start=self._offsets or "earliest",
            group_id=f"headwater-updater-{self._settings.scenario}",
        )

    def _export(self) -> None:
        self._intake.export(self._metrics)
        for name, value in self._prequential.values().items():
            self._metrics.prequential.labels(name).set(value)
        if time.monotonic() >= self._next_lag:
            self._next_lag = time.monotonic() + _LAG_SECONDS
            try:
                lag = self._consumer.lag()
            except HeadwaterStreamError:
                return  # the consumer says itself that the broker is away
            for (topic, partition), records in lag.items():
                self._metrics.consumer_lag_records.labels(topic, str(partition)).set(records)

    def _finish(self) -> None:
        """Learn what waits, checkpoint and publish it, let go of the connections."""
        log.info("updater_stopping", waiting=len(self._batcher))
        if len(self._batcher):
            self._batcher.close()
            self._learn_when_ready()
        if self._is_behind():
            self._checkpoint_and_publish()
        self._export()
        self._letters.close()
        self._announcer.close()
        self._consumer.close()

    @property
    def _checkpoint_root(self) -> Path:
        return self._own.checkpoint_dir / self._settings.scenario


def _to_the_end(consumer: PartitionConsumer, stop: threading.Event) -> Iterator[Any]:
    """Records up to the end of the log, which may lie beyond the last record: markers and gaps have offsets too."""
    while not stop.is_set() and any(consumer.lag().values()):
        yield from consumer.poll(timeout_seconds=0.5)


def _by_name(offsets: Offsets) -> dict[str, int]:
    return {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())}


def _by_partition(offsets: dict[str, int]) -> Offsets:
    parted = ((name.rsplit("/", 1), offset) for name, offset in offsets.items())
    return {(topic, int(partition)): offset for (topic, partition), offset in parted}
