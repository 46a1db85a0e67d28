"""The updater's loop: read a slice of the log, score, learn, checkpoint, gate, publish, commit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

import structlog

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import (
    BundleDigestError,
    CheckpointError,
    RegistryUnavailableError,
    VersionConflictError,
    VersionNotFoundError,
)
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Decision
from peft_adapters.lifecycle.publishing import Publisher
from peft_adapters.lifecycle.warm_start import start_from
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.registry.manifest import Manifest, manifest_bytes
from peft_adapters.registry.ownership import Owner
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import load_signer
from services import memory
from services.metrics.updater import UpdaterMetrics
from services.secrets import publish_or_check
from services.settings import Settings
from services.updater.checkpoint_store import CheckpointStore
from services.updater.intake import Intake
from services.updater.journal import JournalEntry
from services.updater.log_metrics import LogMetrics
from services.updater.quality_monitor import QualityMonitor
from services.updater.replay import ReplayCheck
from services.updater.schedule import Schedule
from streams.consumer import PartitionConsumer
from streams.control import Capped, Quarantined, guard_record, quarantine_record
from streams.dead_letters import DeadLetterWriter
from streams.errors import BrokerUnreachableError, DeliveryError, HeadwaterStreamError
from streams.offsets import Offsets, decode_offsets, encode_offsets
from streams.privacy import pseudonymiser
from streams.producer import EventProducer
from streams.slices import Slice, SliceReader

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05
_LORA_WAITS_SLICES = 3  # in a row, at most
_JUDGED_EVENTS = 32  # of a batch, the first; judging all of a large one would take a third of what learning takes
_EXPORT_SECONDS = 0.25  # how old gauges are at most, but for a slice that takes longer
_TRIM_SECONDS = 10.0
_METADATA_SECONDS = 2.0  # a topic that is missing does not hold learning up for long
_CONFIRM_SECONDS = 10.0  # within the grace that a process is given to end
_WORTH_ANOTHER_TRY = (
    RegistryUnavailableError,
    BundleDigestError,
    VersionConflictError,
    VersionNotFoundError,
    HeadwaterStreamError,
    OSError,
)


class Updater:
    """One scenario's updater. `run` is the loop; `_learn`, `_checkpoint` and `_publish` are its parts.

    The order is the guarantee.

    1. A slice is learnt; where it ends is in the journal by then. 2. Now and then a checkpoint: model, counts, what
    waits, and the offsets they came from; what was refused is on its topic by then. 3. Gate. 4. Publish: registry, then
    announcement. 5. Commit the checkpoint's offsets, for lag tools only: a start seeks to the checkpoint's own. Killed
    anywhere in between, a restart goes on from the checkpoint, repeats the slices recorded since, with what the gate
    decided between them, and loses and repeats nothing.

    Args:
        settings: all of them.
        metrics: where to count.
        stop: set it, and the loop ends after the step it is in.
    """

    def __init__(self, settings: Settings, metrics: UpdaterMetrics, stop: threading.Event) -> None:
        own = settings.updater
        self._settings, self._own, self._metrics, self._stop = settings, own, metrics, stop
        encoder = Encoder(settings.encoder)
        self.learner = Learner(encoder, Catalogue(PrefixCache.from_settings(encoder)), settings.learner)
        self._watch = QualityMonitor(self.learner, settings, metrics)
        self._decided: Decision | None = None  # by the gate since the newest slice
        self._lora_waited = 0  # slices in a row
        self._announcer: EventProducer | None = None  # made at its first word, and anew when it failed
        self._offsets: Offsets = {}
        self._topic_ids: dict[str, str] = {}  # of the logs that the offsets belong to
        self._checkpointed: Offsets = {}
        self._committed: Offsets = {}
        self._untold: list[Quarantined] = []
        self._reported: tuple[Capped, ...] = ()  # what the control topic says is capped
        self._unannounced: Manifest | None = None
        self._checkpoints = Schedule(own.checkpoint_seconds)
        self._trims = Schedule(_TRIM_SECONDS)
        self._publications = Schedule(own.publish_seconds, share=own.publish_share)
        self._unpublished = True  # a version that has learnt nothing is worth publishing: scorers can begin
        self._next_export = 0.0  # monotonic seconds

    # ---- the loop

    def run(self) -> None:
        """Learn until told to stop.

        Raises:
            BrokerUnreachableError: no broker answered at the start.
            AlreadyRunningError: another updater is at work on the same checkpoints.
            CheckpointError: the checkpoint cannot be gone on from, or the disk refused.
            FencedError: another updater has taken over.
        """
        root = self._own.checkpoint_dir / self._settings.scenario
        home = CheckpointStore(root, keep_checkpoints=self._own.keep_checkpoints, stop=self._stop)
        with closing(home) as self._home, home.disk_errors():
            self._begin()
            while not self._done():
                next_ = self._next_slice()
                if next_ is not None:
                    self._learn(*next_)
                self._checkpoint_when_due()
                self._publish_when_due()
                self._commit()
                self._export_when_due()
            self._finish()

    def _done(self) -> bool:
        limit = self._own.max_events
        return self._stop.is_set() or (limit is not None and self.learner.events_learned >= limit)

    def _next_slice(self) -> tuple[Slice, JournalEntry] | None:
        """Return the next slice and what was journaled of it.

        Slices journaled since the last checkpoint are repeated first; then the log is read on.
        """
        recorded = self._home.journal.to_replay
        if recorded:
            if (obstacle := self._replay.obstacle(recorded[0])) is not None:
                log.error(
                    "slices_not_repeated", problem=obstacle, slices=len(recorded), goes_on="with what the log has"
                )
                self._home.journal.abandon()
                return None
            piece = self._reader.repeat(recorded[0].ends, _POLL_SECONDS)
            if piece is None:
                return None
            self._replay.compare(piece, recorded[0])
            self._settle(recorded[0].decision)
            return piece, recorded.popleft()
        return self._recorded(self._reader.poll(_POLL_SECONDS))

    def _recorded(self, piece: Slice | None) -> tuple[Slice, JournalEntry] | None:
        """Where a slice ends is on the disk before it is learnt: a restart cuts it there again.

        So is what the gate has decided since the slice before, and only then is the consequence drawn; and so is
        whether LoRA waits, and the clock that bounds the slice's times.
        """
        if piece is None:
            return None
        self._home.verify()
        late = self._lets_lora_wait(piece)
        now_ms = time.time_ns() // 1_000_000
        recorded = JournalEntry(piece.ends, self._decided, late, now_ms, piece.topic_ids, piece.missed)
        self._home.journal.record(recorded)
        self._settle(self._decided)
        self._decided = None
        return piece, recorded

    def _lets_lora_wait(self, piece: Slice) -> bool:
        """Whether a slice is so late that LoRA, most of what learning takes, is put off; not for ever.

        The record in its middle says how late it is: a single producer whose clock is behind makes no slice late.
        """
        middle_ms = piece.records[len(piece.records) // 2].timestamp_ms if piece.records else math.inf
        late = time.time() - middle_ms / 1_000 > self._own.late_seconds
        self._lora_waited = self._lora_waited + 1 if late and self._lora_waited < _LORA_WAITS_SLICES else 0
        return self._lora_waited > 0

    def _settle(self, decision: Decision | None) -> None:
        if self._watch.settle(decision):
            self._publisher.begin_anew()
            self._unpublished = True

    def _learn(self, piece: Slice, recorded: JournalEntry) -> None:
        """Take a slice in, and learn what it gives: positives, each batch judged before it is learnt, then lists."""
        self._intake.miss(piece.missed)
        taken = self._intake.take(piece.records, now_ms=recorded.now_ms)
        self._metrics.late_slices.inc(recorded.late and bool(taken.examples))
        for letter in taken.letters:
            self._letters.write(letter)
        for examples in _batches(taken.examples, self._own.batch_events):
            with self._metrics.learn_seconds.time():
                batch = self.learner.observe(examples, whole=False)
                self._watch.judge(self.learner.first_of(batch, _JUDGED_EVENTS))
                loss = self.learner.learn(batch, lora=not recorded.late)
            self._count(loss)
        for lists in _batches(taken.lists, self._own.batch_events):
            with self._metrics.learn_seconds.time():
                loss = self.learner.learn_lists(self.learner.observe_lists(lists))
            self._count(loss)
        self._offsets, self._topic_ids = piece.ends, piece.topic_ids
        self._unpublished |= bool(taken.examples or taken.lists)

    def _count(self, loss: float) -> None:
        if math.isfinite(loss):
            self._metrics.batches.inc()
        else:
            self._metrics.batches_set_aside.inc()
            log.warning("batch_set_aside", problem="its loss or gradients are not finite; it is counted, not learnt")

    def _checkpoint_when_due(self) -> None:
        if self._offsets != self._checkpointed and self._checkpoints.is_due():
            self._checkpoints.done() if self._checkpoint() else self._checkpoints.failed()

    def _publish_when_due(self) -> None:
        """Publish, but for a process whose checkpoints fail: nothing leaves it."""
        if self._has_news() and not self._checkpoints.is_failing and self._publications.is_due():
            self._publications.done() if self._publish() else self._publications.failed()

    def _commit(self) -> None:
        if self._committed != self._checkpointed and not self._has_news():
            self._consumer.commit(self._checkpointed)
            self._committed = self._checkpointed

    def _has_news(self) -> bool:
        return self._unpublished or self._unannounced is not None

    def _is_behind(self) -> bool:
        """Whether something was learnt and not published, or read (refused, a duplicate, an item) and not kept."""
        return self._has_news() or self._offsets != self._checkpointed

    def _publish(self) -> bool:
        """Publish what was learnt, unless the gate refuses it; False where registry or broker failed.

        While slices are repeated, nothing is: what the gate decided then is in the journal.
        """
        with self._metrics.publish_seconds.time():
            try:
                if self._unpublished and not self._home.journal.to_replay:
                    self._gate_and_publish()
                if self._unannounced is not None:
                    self._announce(self._unannounced)
            except _WORTH_ANOTHER_TRY as error:
                # Learning goes on; what is unpublished goes with the next publication.
                log.warning("publication_failed", problem=str(error), retries="after a pause")
                return False
        return True

    # ---- its steps

    def _checkpoint(self) -> bool:
        """Keep the state of things; False where what was refused cannot be confirmed, and so not passed by."""
        with self._metrics.checkpoint_seconds.time():
            try:
                self._letters.flush(_CONFIRM_SECONDS)
                self._tell_quarantined()
            except (BrokerUnreachableError, DeliveryError) as error:
                log.warning("checkpoint_put_off", problem=str(error), retries="after a pause")
                return False
            tensors, watch = self._watch.state_dict()
            extra = watch | {
                "offsets": encode_offsets(self._offsets),
                "topic_ids": self._topic_ids,
                "intake": self._intake.state(),
                "pseudonyms": self._pseudonymise.fingerprint(),
            }
            self._home.save(self.learner, extra, tensors)
            self._trim_when_due()
        self._report_caps()
        self._checkpointed = dict(self._offsets)
        log.debug("checkpoint_saved", number=self._home.checkpoint, events_learned=self.learner.events_learned)
        return True

    def _trim_when_due(self) -> None:
        """Return freed memory to the system: a checkpoint copies all tensors, and leaves holes as large in the heap."""
        if self._trims.is_due():
            memory.trim()
            self._trims.done()

    def _gate_and_publish(self) -> None:
        self._home.verify()
        directory, manifest = self._publisher.candidate(
            offsets=encode_offsets(self._offsets),
            watermark_ms=self._intake.watermarks.latest_ms,
            metrics=self._watch.prequential.values(),
        )
        self._watch.tell(manifest)
        if manifest.gate["decision"] == "refused":
            self._publisher.keep_refused(directory, manifest)
            self._metrics.adapters.labels("refused").inc()
            self._unpublished, self._decided = False, "refused"
            return
        self._publisher.publish(directory, manifest)
        self._unpublished, self._unannounced, self._decided = False, manifest, "published"

    def _tell_quarantined(self) -> None:
        """Say on the control topic what went into quarantine since the checkpoint before."""
        self._untold += self._intake.guard.newly_quarantined()
        if self._untold:
            self._say(self._settings.topics.control, [quarantine_record(new.key, new.why) for new in self._untold])
            self._untold.clear()

    def _report_caps(self) -> None:
        """Send what the guard leaves out or weighs down at present, if that has changed; nothing waits for it."""
        report = self._intake.guard_report(self._settings.scenario)
        if report.caps == self._reported:
            return
        with suppress(BrokerUnreachableError, DeliveryError):
            self._open_announcer().send_raw(self._settings.topics.control, *guard_record(report))
            self._reported = report.caps

    def _announce(self, manifest: Manifest) -> None:
        self._home.verify()  # who hung meanwhile announces nothing older than its successor's
        self._say(self._settings.topics.adapters, [(manifest.scenario.encode(), manifest_bytes(manifest))])
        self._unannounced = None
        self._metrics.adapters.labels("published").inc()
        self._metrics.adapter.show(
            manifest.version, published_at_ms=manifest.published_at_ms, watermark_ms=manifest.watermark_ms
        )

    def _say(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        announcer = self._open_announcer()
        try:
            for key, value in records:
                announcer.send_raw(topic, key, value)
            announcer.flush(timeout_seconds=_CONFIRM_SECONDS)
        except DeliveryError:
            with suppress(DeliveryError):  # after a failure an idempotent producer delivers nothing more
                announcer.close(timeout_seconds=0)
            self._announcer = None
            raise

    def _open_announcer(self) -> EventProducer:
        self._announcer = self._announcer or EventProducer(
            self._settings.kafka, metadata_timeout_seconds=_METADATA_SECONDS
        )
        return self._announcer

    # ---- start and end

    def _begin(self) -> None:
        """Go on from the newest checkpoint; without one, read the catalogue that is there before any event."""
        settings, own = self._settings, self._own
        self._pseudonymise = pseudonymiser(settings.privacy)
        self._intake = Intake(self.learner, settings, store=self._home.store, pseudonymise=self._pseudonymise)
        self._letters = DeadLetterWriter(
            settings.kafka,
            settings.topics,
            policy=settings.privacy.dead_letter_payload,
            pseudonymise=self._pseudonymise,
        )
        self._publisher = Publisher(
            self.learner,
            AdapterRegistry(own.registry_url),
            scenario=settings.scenario,
            owner=Owner(lineage=self._home.lineage, epoch=self._home.epoch),
            staging=own.checkpoint_dir / "staging",
            gate=self._watch.gate,
            snapshot_every=own.snapshot_every,
            retention=own.retention,
            secret_fingerprint=self._pseudonymise.fingerprint(),
            sign=load_signer(settings.signing),
        )
        self._resume()
        if not self._offsets and not self._home.journal.to_replay:
            self._learn_catalogue()
        self._consumer = self._open(self._intake.topics)
        publish_or_check(settings, self._pseudonymise)
        self._reader = self._slices_of(self._consumer)
        self._replay = ReplayCheck(self._consumer)
        self._log_metrics = LogMetrics(self._consumer, self._metrics, self._intake.topics)
        log.info("updater_started", items=len(self.learner.catalogue), events_learned=self.learner.events_learned)

    def _resume(self) -> None:
        kept = self._home.load(self.learner)
        if kept is None:
            self._start_warm()
            return
        saved, tensors = kept
        if saved["pseudonyms"] != self._pseudonymise.fingerprint():
            raise CheckpointError(
                "`privacy.secret` must be the one that the checkpoint was made with, got another: its shoppers would "
                "not be known again; put the secret back, or start in an empty directory"
            )
        self._offsets = decode_offsets(saved["offsets"])
        self._topic_ids = saved.get("topic_ids", {})  # checkpoints of earlier releases know none
        self._checkpointed = dict(self._offsets)
        self._intake.restore(saved["intake"])
        self._watch.load_state_dict(tensors, saved)
        log.info(
            "resumed",
            events_learned=self.learner.events_learned,
            offsets=saved["offsets"],
            slices_to_repeat=len(self._home.journal.to_replay),
        )

    def _start_warm(self) -> None:
        """Without a checkpoint: begin from what was fitted offline, where there is such a thing."""
        directory = self._own.start_from
        if directory is None:
            return
        kept = start_from(self.learner, directory)
        if kept is not None and kept["pseudonyms"] != self._pseudonymise.fingerprint():
            raise CheckpointError(
                "`privacy.secret` must be the one that the fit was made with, got another: its shoppers would not be "
                "known again; put the secret back, or fit again with this one"
            )
        self._watch.gate.anchor()
        log.info("started_warm", directory=str(directory), events_learned=self.learner.events_learned)

    def _learn_catalogue(self) -> None:
        """Learn the items that are there, up to the end of their topic; wait for the topic to be there."""
        topics = [self._settings.topics.items]
        with closing(self._open(topics)) as consumer:
            reader, metrics = self._slices_of(consumer), LogMetrics(consumer, self._metrics, topics)
            while not self._stop.is_set() and not _is_read(consumer):
                metrics.export(reader.waiting)
                reader.read(0.5)
            self._learn_rest(reader)

    def _learn_rest(self, reader: SliceReader) -> None:
        """Learn all that was read, in as many slices as it takes."""
        while (piece := self._recorded(reader.flush())) is not None:
            self._learn(*piece)

    def _open(self, topics: list[str]) -> PartitionConsumer:
        group_id = f"headwater-updater-{self._settings.scenario}"
        return PartitionConsumer(
            self._settings.kafka,
            topics,
            start=self._offsets or "earliest",
            topic_ids=self._topic_ids,
            group_id=group_id,
        )

    def _slices_of(self, consumer: PartitionConsumer) -> SliceReader:
        return SliceReader(
            consumer,
            topics=self._intake.topics,
            counted=self._intake.counted,
            max_events=self._own.batch_events,
            max_bytes=self._own.batch_bytes,
            max_age_seconds=self._own.batch_seconds,
        )

    def _export_when_due(self) -> None:
        if time.monotonic() >= self._next_export:
            self._next_export = time.monotonic() + _EXPORT_SECONDS
            self._export()

    def _export(self) -> None:
        self._intake.export(self._metrics)
        self._watch.export()
        waiting = self._reader.waiting
        self._metrics.records_waiting.set(sum(waiting.values()))
        self._log_metrics.export(waiting)

    def _finish(self) -> None:
        """Learn what waits, checkpoint and publish it, let go of the connections."""
        log.info("updater_stopping", waiting=sum(self._reader.waiting.values()))
        if self._stop.is_set() and not self._home.journal.to_replay:
            self._learn_rest(self._reader)
        if not self._is_behind() or self._checkpoint():
            self._publish()
            self._commit()
        self._export()
        with suppress(DeliveryError):  # said before; a restart sends what is missing
            self._letters.close(timeout_seconds=0)
        with suppress(DeliveryError):
            if self._announcer is not None:
                self._announcer.close()
        self._consumer.close()


def _is_read(consumer: PartitionConsumer) -> bool:
    """Return whether all there is was read; False as long as that cannot be told."""
    try:
        return not consumer.problems() and consumer.has_reached(consumer.end_offsets())
    except HeadwaterStreamError:  # the consumer itself reports what is wrong
        return False


def _batches(taken: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [taken[start : start + size] for start in range(0, len(taken), size)]
