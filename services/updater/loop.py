"""The updater's loop: consume, evaluate, learn, checkpoint, gate, publish, commit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import TypeVar

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import (
    BundleDigestError,
    RegistryUnavailableError,
    VersionConflictError,
    VersionNotFoundError,
)
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Decision
from peft_adapters.lifecycle.publishing import Publisher
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.manifest import Manifest
from services import memory
from services.metrics.updater import UpdaterMetrics
from services.secrets import publish_or_check
from services.settings import Settings
from services.updater.announcer import Announcer
from services.updater.checkpoint_store import CheckpointStore
from services.updater.intake import Intake
from services.updater.journal import JournalEntry
from services.updater.log_metrics import LogMetrics
from services.updater.quality_monitor import QualityMonitor
from services.updater.schedule import Schedule
from services.updater.source import ReplayingSource, SliceRecorder, open_consumer, slice_reader
from services.updater.startup import Position, Startup, open_publisher
from streams.consumer import PartitionConsumer
from streams.dead_letters import DeadLetterWriter
from streams.errors import BrokerUnreachableError, DeliveryError, HeadwaterStreamError
from streams.offsets import encode_offsets
from streams.privacy import pseudonymiser
from streams.slices import Slice

Item = TypeVar("Item")

log = structlog.get_logger(__name__)

JUDGED_EVENTS = 32  # the first of a micro-batch: judging all of a large one takes a third of the learning time
_EXPORT_SECONDS = 0.25  # age of the gauges at most, unless a slice takes longer
_TRIM_SECONDS = 10.0
_CONFIRM_SECONDS = 10.0  # within the grace period that a process is given to end
_RETRIED_ERRORS = (
    RegistryUnavailableError,
    BundleDigestError,
    VersionConflictError,
    VersionNotFoundError,
    HeadwaterStreamError,
    OSError,
)


class Updater:
    """The updater of one scenario; `run` is the loop.

    The order of the steps gives the guarantee of exactly once:

    1. Learn a slice of the log. Its end is in the journal before it is learnt.
    2. Checkpoint from time to time: the model, the counts, the waiting events and the offsets they came from, in one
       commit. Dead letters and quarantines are confirmed on their topics before it.
    3. Gate: judge the candidate adapter.
    4. Publish the adapter: first to the registry, then on the topic `adapters`.
    5. Commit the checkpoint's offsets, for lag tools only: a start seeks to the offsets in the checkpoint.

    After a kill at any instant, a restart resumes from the checkpoint, repeats the slices journaled since, with the
    gate's decisions between them, and neither loses nor repeats an event.

    Args:
        settings: the settings of all sections.
        metrics: the updater's metrics.
        stop: an event that ends the loop after the current step.

    Attributes:
        learner: the learner of the scenario.
    """

    def __init__(self, settings: Settings, metrics: UpdaterMetrics, stop: threading.Event) -> None:
        updater = settings.updater
        self._settings, self._updater, self._metrics, self._stop = settings, updater, metrics, stop
        encoder = Encoder(settings.encoder)
        self.learner = Learner(encoder, Catalogue(PrefixCache.from_settings(encoder)), settings.learner)
        self._quality = QualityMonitor(self.learner, settings, metrics)
        self._pseudonymise = pseudonymiser(settings.privacy)
        self._announcer = Announcer(settings.kafka, settings.topics)
        self._checkpoints = Schedule(updater.checkpoint_seconds)
        self._trims = Schedule(_TRIM_SECONDS)
        self._publications = Schedule(updater.publish_seconds, share=updater.publish_share)
        self._next_export = 0.0  # monotonic seconds
        # Progress of the steps
        self._learnt = Position()
        self._checkpointed = Position()
        self._committed = Position()
        self._unpublished = True  # an adapter that has learnt nothing is worth publishing: scorers can begin
        self._unannounced: Manifest | None = None
        # Opened by `run`, once the store holds the lease
        self._store: CheckpointStore
        self._intake: Intake
        self._letters: DeadLetterWriter
        self._publisher: Publisher
        self._recorder: SliceRecorder
        self._consumer: PartitionConsumer
        self._source: ReplayingSource
        self._log_metrics: LogMetrics

    # ---- the loop

    def run(self) -> None:
        """Learn until stopped.

        Raises:
            BrokerUnreachableError: no broker answered at the start.
            AlreadyRunningError: another updater uses the same checkpoints.
            CheckpointError: the checkpoint cannot be used, or the disk refused.
            FencedError: another updater has taken over.
        """
        with closing(self._open_store()) as self._store, self._store.disk_errors():
            self._start()
            while not self._is_done():
                journaled = self._source.poll()
                if journaled is not None:
                    self._learn(*journaled)  # 1
                self._checkpoint_when_due()  # 2
                self._publish_when_due()  # 3 and 4
                self._commit()  # 5
                self._export_when_due()
            self._finish()

    def _is_done(self) -> bool:
        limit = self._updater.max_events
        return self._stop.is_set() or (limit is not None and self.learner.events_learned >= limit)

    def _learn(self, slice_: Slice, entry: JournalEntry) -> None:
        """Learn a slice: first its positives, each micro-batch evaluated before it is learnt, then its lists."""
        self._apply_decision(entry.decision)
        self._intake.accounts.count_missed(slice_.missed)
        result = self._intake.ingest(slice_.records, now_ms=entry.now_ms, topic_ids=slice_.topic_ids)
        self._metrics.learning.slice_learnt(lagging=entry.lagging and bool(result.examples))
        for letter in result.letters:
            self._letters.write(letter)
        for examples in _batches(result.examples, self._updater.batch_events):
            with self._metrics.learning.learning():
                batch = self.learner.observe(examples, whole=False)
                self._quality.judge(self.learner.first_of(batch, JUDGED_EVENTS))
                loss = self.learner.learn(batch, lora=not entry.lagging)
            self._count_batch(loss)
        for lists in _batches(result.lists, self._updater.batch_events):
            with self._metrics.learning.learning():
                loss = self.learner.learn_lists(self.learner.observe_lists(lists))
            self._count_batch(loss)
        self._learnt = Position(slice_.ends, slice_.topic_ids)
        self._unpublished |= bool(result.examples or result.lists)

    def _checkpoint_when_due(self) -> None:
        if self._learnt != self._checkpointed and self._checkpoints.is_due():
            self._checkpoints.done() if self._checkpoint() else self._checkpoints.failed()

    def _publish_when_due(self) -> None:
        """Publish, unless checkpoints fail: nothing leaves a process that cannot write them."""
        if self._has_unpublished() and not self._checkpoints.is_failing and self._publications.is_due():
            self._publications.done() if self._publish() else self._publications.failed()

    def _publish(self) -> bool:
        """Publish the learnt changes unless the gate refuses them. Returns False if registry or broker failed.

        Nothing is published while slices are repeated: the gate's decisions of that time are in the journal.
        """
        with self._metrics.learning.publishing():
            try:
                if self._unpublished and not self._source.is_replaying:
                    self._gate_and_publish()
                if self._unannounced is not None:
                    self._announce(self._unannounced)
            except _RETRIED_ERRORS as error:
                # Learning continues; the changes go with the next publication.
                log.warning("publication_failed", problem=str(error), retries="after a pause")
                return False
        return True

    def _commit(self) -> None:
        if self._committed != self._checkpointed and not self._has_unpublished():
            self._consumer.commit(self._checkpointed.offsets)
            self._committed = self._checkpointed

    def _has_unpublished(self) -> bool:
        return self._unpublished or self._unannounced is not None

    def _is_behind(self) -> bool:
        """Return whether there are changes to publish, or records read since the checkpoint, learnt or not."""
        return self._has_unpublished() or self._learnt != self._checkpointed

    # ---- the steps in detail

    def _apply_decision(self, decision: Decision | None) -> None:
        if self._quality.apply_decision(decision):
            self._publisher.force_full()
            self._unpublished = True

    def _count_batch(self, loss: float) -> None:
        self._metrics.learning.micro_batch_learnt(loss)
        if not math.isfinite(loss):
            log.warning("batch_set_aside", problem="its loss or gradients are not finite; it is counted, not learnt")

    def _checkpoint(self) -> bool:
        """Write a checkpoint. Returns False if the broker does not confirm the dead letters or quarantines before."""
        with self._metrics.learning.checkpointing():
            try:
                self._letters.flush(_CONFIRM_SECONDS)
                self._announcer.publish_quarantined(self._intake.guard.newly_quarantined())
            except (BrokerUnreachableError, DeliveryError) as error:
                log.warning("checkpoint_put_off", problem=str(error), retries="after a pause")
                return False
            tensors, quality = self._quality.state_dict()
            extra = quality | {
                "offsets": encode_offsets(self._learnt.offsets),
                "topic_ids": self._learnt.topic_ids,
                "intake": self._intake.state(),
                "pseudonyms": self._pseudonymise.fingerprint(),
            }
            self._store.save(self.learner, extra, tensors)
            self._trim_when_due()
        self._announcer.report_caps(self._intake.guard_report(self._settings.scenario))
        self._checkpointed = self._learnt
        log.debug("checkpoint_saved", number=self._store.checkpoint, events_learned=self.learner.events_learned)
        return True

    def _trim_when_due(self) -> None:
        """Return freed memory to the system: the copies of a checkpoint leave holes of their size in the heap."""
        if self._trims.is_due():
            memory.trim()
            self._trims.done()

    def _gate_and_publish(self) -> None:
        """Write a candidate and publish it to the registry, unless the gate refuses it."""
        self._store.verify()
        directory, manifest = self._publisher.candidate(
            offsets=encode_offsets(self._learnt.offsets),
            watermark_ms=self._intake.watermarks.latest_ms,
            metrics=self._quality.prequential.values(),
        )
        self._quality.report_candidate(manifest)
        if manifest.gate["decision"] == "refused":
            self._publisher.keep_refused(directory, manifest)
            self._metrics.gate.adapter_refused()
            self._unpublished = False
            self._recorder.record_decision("refused")
            return
        self._publisher.publish(directory, manifest)
        self._unpublished, self._unannounced = False, manifest
        self._recorder.record_decision("published")

    def _announce(self, manifest: Manifest) -> None:
        self._store.verify()  # a process that hung meanwhile must not announce an older version than its successor
        self._announcer.publish_adapter(manifest)
        self._unannounced = None
        self._metrics.gate.adapter_published()
        self._metrics.adapter.show(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )

    def _export_when_due(self) -> None:
        if time.monotonic() >= self._next_export:
            self._next_export = time.monotonic() + _EXPORT_SECONDS
            self._export()

    def _export(self) -> None:
        self._intake.accounts.export(self._metrics.intake)
        self._quality.export()
        waiting = self._source.waiting
        self._metrics.log.show_waiting(sum(waiting.values()))
        self._log_metrics.export(waiting)

    # ---- start and end

    def _open_store(self) -> CheckpointStore:
        root = self._updater.checkpoint_dir / self._settings.scenario
        return CheckpointStore(root, keep_checkpoints=self._updater.keep_checkpoints, stop=self._stop)

    def _start(self) -> None:
        """Resume from the newest checkpoint; without one, learn the existing catalogue before any event."""
        settings, store, fingerprint = self._settings, self._store, self._pseudonymise.fingerprint()
        self._intake = Intake(self.learner, settings, store=store.store, pseudonymise=self._pseudonymise)
        self._letters = DeadLetterWriter(
            settings.kafka,
            settings.topics,
            policy=settings.privacy.dead_letter_payload,
            pseudonymise=self._pseudonymise,
        )
        self._publisher = open_publisher(settings, store, self.learner, self._quality.gate, fingerprint=fingerprint)
        self._recorder = SliceRecorder(store, lagging_seconds=self._updater.late_seconds)
        startup = Startup(settings, store, self.learner, self._intake, self._quality, fingerprint=fingerprint)
        self._learnt = self._checkpointed = startup.load()
        if not self._learnt.offsets and not store.journal.to_replay:
            with closing(startup.catalogue(self._recorder, self._metrics.log, self._stop)) as slices:
                for journaled in slices:
                    self._learn(*journaled)
        topics = self._intake.topics
        self._consumer = open_consumer(settings, topics, self._learnt.offsets, self._learnt.topic_ids)
        publish_or_check(settings, self._pseudonymise)
        reader = slice_reader(settings, self._consumer, self._intake)
        self._source = ReplayingSource(self._consumer, reader, self._recorder, store)
        self._log_metrics = LogMetrics(self._consumer, self._metrics.log, topics)
        log.info("updater_started", items=len(self.learner.catalogue), events_learned=self.learner.events_learned)

    def _finish(self) -> None:
        """Learn the waiting records, checkpoint and publish them, and close the connections."""
        log.info("updater_stopping", waiting=sum(self._source.waiting.values()))
        if self._stop.is_set() and not self._source.is_replaying:
            while (journaled := self._source.flush()) is not None:
                self._learn(*journaled)
        if not self._is_behind() or self._checkpoint():
            self._publish()
            self._commit()
        self._export()
        with suppress(DeliveryError):  # reported before; a restart sends the missing letters
            self._letters.close(timeout_seconds=0)
        with suppress(DeliveryError):
            self._announcer.close()
        self._consumer.close()


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
