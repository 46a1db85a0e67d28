"""The source of slices: journaled ones first, each new one journaled before it is learnt."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.updater.checkpoint_store import CheckpointStore
from services.updater.journal import JournalEntry
from services.updater.source import ReplayingSource, SliceRecorder
from streams.consumer import PartitionConsumer
from streams.record import Record
from streams.slices import Slice, SliceReader

AT = ("clicks", 0)


class FakeReader:
    """A reader with one slice for each offset."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def poll(self, _timeout_seconds: float) -> Slice | None:
        self._next += 1
        return slice_until(self._next - 1)

    def repeat(self, ends: dict[tuple[str, int], int], _timeout_seconds: float) -> Slice | None:
        return Slice([], dict(ends))


def slice_until(end: int, *, age_seconds: float = 0.0) -> Slice:
    timestamp_ms = int((time.time() - age_seconds) * 1_000)
    return Slice([Record(*AT, end - 1, None, b"{}", timestamp_ms)], {AT: end})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with closing(opened(tmp_path)) as made:
        yield made


def opened(root: Path) -> CheckpointStore:
    return CheckpointStore(root, keep_checkpoints=2, stop=threading.Event())


def source_of(store: CheckpointStore, reader: Any, **consumer: Any) -> ReplayingSource:
    consumed = {"topic_ids": dict, "end_offsets": lambda: {AT: 9}, "positions": dict, "topics": [AT[0]]} | consumer
    return ReplayingSource(
        cast(PartitionConsumer, SimpleNamespace(**consumed)),
        cast(SliceReader, reader),
        SliceRecorder(store, lagging_seconds=1.0),
        store,
    )


def test_a_slice_is_in_the_journal_before_it_is_returned(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        journaled = source_of(store, FakeReader()).poll()
    assert journaled is not None
    with closing(opened(tmp_path)) as again:
        assert list(again.journal.to_replay) == [journaled.entry]


def test_journaled_slices_come_first_and_are_not_journaled_again(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        for end in (1, 2):
            store.journal.record(JournalEntry({AT: end}))
    with closing(opened(tmp_path)) as store:
        source, replaying, ends = source_of(store, FakeReader(first=3)), [], []
        for _ in range(3):
            replaying.append(source.is_replaying)
            journaled = source.poll()
            assert journaled is not None
            ends.append(journaled.slice_.ends[AT])
        assert (replaying, ends) == ([True, True, False], [1, 2, 3])
    with closing(opened(tmp_path)) as again:
        assert [entry.ends[AT] for entry in again.journal.to_replay] == [1, 2, 3]


def test_slices_of_another_log_are_dropped_and_the_log_is_read_on(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        store.journal.record(JournalEntry({AT: 5}, topic_ids={AT[0]: "c/1"}))
    with closing(opened(tmp_path)) as store:
        source = source_of(store, FakeReader(), topic_ids=lambda: {AT[0]: "c/2"})
        assert source.poll() is None
        assert not source.is_replaying
        journaled = source.poll()
        assert journaled is not None
        assert journaled.slice_.ends == {AT: 1}


def test_a_decision_of_the_gate_stands_beside_the_next_slice_alone(store: CheckpointStore) -> None:
    recorder = SliceRecorder(store, lagging_seconds=1.0)
    recorder.record_decision("published")
    assert [recorder.record(slice_until(end)).entry.decision for end in (1, 2)] == ["published", None]


def test_lora_skips_three_lagging_slices_of_four_and_none_that_is_fresh(store: CheckpointStore) -> None:
    recorder = SliceRecorder(store, lagging_seconds=1.0)
    ages = [60.0] * 5 + [0.0, 60.0]
    lagging = [recorder.record(slice_until(end, age_seconds=age)).entry.lagging for end, age in enumerate(ages, 1)]
    assert lagging == [True, True, True, False, True, False, True]


def test_a_fenced_updater_journals_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(tmp_path)) as store:
        monkeypatch.setattr(store, "verify", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            source_of(store, FakeReader()).poll()
        monkeypatch.undo()
    with closing(opened(tmp_path)) as again:
        assert not again.journal.to_replay
