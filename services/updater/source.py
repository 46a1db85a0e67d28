"""The slices that an updater learns: those journaled by an earlier run first, then new ones from the log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from peft_adapters.lifecycle.gate import Decision
from services.settings import Settings
from services.updater.checkpoint_store import CheckpointStore
from services.updater.intake import Intake
from services.updater.journal import JournalEntry
from services.updater.replay import ReplayCheck
from streams.consumer import PartitionConsumer
from streams.offsets import Offsets, TopicPartition
from streams.slices import Slice, SliceReader

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05
_LORA_SKIPS_SLICES = 3  # in a row, at most


class JournaledSlice(NamedTuple):
    """A slice whose end is on disk, with its journal entry."""

    slice_: Slice
    entry: JournalEntry


class SliceRecorder:
    """Recorder of new slices: each is journaled before it is learnt, so that a restart cuts the same slices again.

    Args:
        store: the checkpoint store with the journal.
        lagging_seconds: the age of a slice's records from which on learning lags behind the log.
    """

    def __init__(self, store: CheckpointStore, *, lagging_seconds: float) -> None:
        self._store, self._lagging_seconds = store, lagging_seconds
        self._decision: Decision | None = None
        self._skipped_by_lora = 0  # slices in a row

    def record_decision(self, decision: Decision) -> None:
        """Record the gate's decision together with the next slice; until then it has no effect."""
        self._decision = decision

    def record(self, slice_: Slice) -> JournaledSlice:
        """Journal a slice, the gate's decision before it, whether LoRA skips it, and the clock that bounds its times.

        Raises:
            CheckpointError: the disk refused.
            FencedError: another updater has taken over.
        """
        self._store.verify()
        lagging = self._skips_lora(slice_)
        now_ms = time.time_ns() // 1_000_000
        entry = JournalEntry(slice_.ends, self._decision, lagging, now_ms, slice_.topic_ids, slice_.missed)
        self._store.journal.record(entry)
        self._decision = None
        return JournaledSlice(slice_, entry)

    def _skips_lora(self, slice_: Slice) -> bool:
        """Return whether LoRA, the largest part of the learning time, skips a slice because learning lags.

        At most three slices in a row are skipped. The age is that of the record in the middle of the slice, so that a
        single producer with a slow clock has no effect.
        """
        middle_ms = slice_.records[len(slice_.records) // 2].timestamp_ms if slice_.records else math.inf
        lagging = time.time() - middle_ms / 1_000 > self._lagging_seconds
        self._skipped_by_lora = (
            self._skipped_by_lora + 1 if lagging and self._skipped_by_lora < _LORA_SKIPS_SLICES else 0
        )
        return self._skipped_by_lora > 0


class ReplayingSource:
    """Source of slices that repeats those journaled since the last checkpoint, then reads the log on.

    Args:
        consumer: the consumer that reads the log.
        reader: the reader that cuts the log into slices.
        recorder: the recorder of new slices.
        store: the checkpoint store with the journal.
    """

    def __init__(
        self, consumer: PartitionConsumer, reader: SliceReader, recorder: SliceRecorder, store: CheckpointStore
    ) -> None:
        self._reader, self._recorder, self._journal = reader, recorder, store.journal
        self._check = ReplayCheck(consumer)

    @property
    def is_replaying(self) -> bool:
        """True while journaled slices are still to be repeated."""
        return bool(self._journal.to_replay)

    @property
    def waiting(self) -> dict[TopicPartition, int]:
        """The number of records read and not yet returned, by partition."""
        return self._reader.waiting

    def poll(self) -> JournaledSlice | None:
        """Return the next slice; None if none is due yet."""
        if self.is_replaying:
            return self._repeat()
        slice_ = self._reader.poll(_POLL_SECONDS)
        return None if slice_ is None else self._recorder.record(slice_)

    def flush(self) -> JournaledSlice | None:
        """Return the records that wait as a slice, although it is not due yet; None if none wait."""
        slice_ = self._reader.flush()
        return None if slice_ is None else self._recorder.record(slice_)

    def _repeat(self) -> JournaledSlice | None:
        entries = self._journal.to_replay
        if (obstacle := self._check.obstacle(entries[0])) is not None:
            log.error("slices_not_repeated", problem=obstacle, slices=len(entries), goes_on="with what the log has")
            self._journal.abandon()
            return None
        slice_ = self._reader.repeat(entries[0].ends, _POLL_SECONDS)
        if slice_ is None:
            return None
        self._check.compare(slice_, entries[0])
        return JournaledSlice(slice_, entries.popleft())


def open_consumer(
    settings: Settings, topics: list[str], offsets: Offsets, topic_ids: Mapping[str, str]
) -> PartitionConsumer:
    """Open a consumer of the updater's topics.

    Args:
        settings: the updater's settings.
        topics: the names of the topics.
        offsets: the next offset of each partition; if empty, topics are read from their beginning.
        topic_ids: the ids of the topics that the offsets belong to.
    """
    group_id = f"headwater-updater-{settings.scenario}"
    return PartitionConsumer(
        settings.kafka, topics, start=offsets or "earliest", topic_ids=topic_ids, group_id=group_id
    )


def slice_reader(settings: Settings, consumer: PartitionConsumer, intake: Intake) -> SliceReader:
    """Return a reader that cuts what the consumer reads into slices of one micro-batch each."""
    updater = settings.updater
    return SliceReader(
        consumer,
        topics=intake.topics,
        counted=intake.counted,
        max_events=updater.batch_events,
        max_bytes=updater.batch_bytes,
        max_age_seconds=updater.batch_seconds,
    )
