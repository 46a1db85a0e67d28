"""The checkpoint store: the valid state after a kill, the lease, and the fencing of an earlier owner."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_learner

from peft_adapters.errors import AlreadyRunningError, CheckpointError, FencedError
from peft_adapters.learning.learner import Learner
from peft_adapters.settings import LearnerSettings
from services.updater import lease as lease_module
from services.updater.checkpoint_store import CheckpointStore
from services.updater.journal import Journal, JournalEntry
from streams.pending_impressions import PendingImpression

AT = ("clicks", 0)


def opened(root: Path) -> CheckpointStore:
    return CheckpointStore(root, keep_checkpoints=2, stop=threading.Event())


def shown(request: int) -> PendingImpression:
    return PendingImpression(1_000, "impressions", request, "u", None, ("a",), (0,))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_learner(LearnerSettings(), items=4)


def test_a_checkpoint_counts_together_with_what_waits(tmp_path: Path, learner: Learner) -> None:
    with closing(opened(tmp_path)) as first:
        assert first.load(learner) is None
        first.store.add(shown(1))
        first.save(learner, {"number": 1}, {"live": torch.ones(2)})
        first.store.add(shown(2))  # in no checkpoint
    with closing(opened(tmp_path)) as second:
        assert (second.epoch, second.checkpoint, second.lineage) == (first.epoch + 1, 1, first.lineage)
        extra, beside = second.load(tiny_learner(LearnerSettings())) or ({}, {})
        assert (extra, {name: value.tolist() for name, value in beside.items()}) == (
            {"number": 1},
            {"live": [1.0, 1.0]},
        )
        assert [second.store.by_request(request) is not None for request in (1, 2)] == [True, False]


def test_one_that_was_written_and_did_not_come_to_count_is_as_if_it_had_never_been(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path)) as first:
        first.save(learner, {"number": 1})
        first.journal.record(JournalEntry({AT: 7}))
        first.store.add(shown(1))
        with monkeypatch.context() as patch:
            patch.setattr(first.store, "commit", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                first.save(learner, {"number": 2})
    with closing(opened(tmp_path)) as second:
        assert second.load(tiny_learner(LearnerSettings())) == ({"number": 1}, {})
        assert _ends(second) == [{AT: 7}]
        assert second.store.by_request(1) is None
        second.save(learner, {"number": 3})
        assert second.load(tiny_learner(LearnerSettings())) == ({"number": 3}, {})


class TestJournal:
    def test_ends_since_the_checkpoint_are_to_be_repeated(self, tmp_path: Path, learner: Learner) -> None:
        with closing(opened(tmp_path)) as first:
            first.journal.record(JournalEntry({AT: 1}))
            first.save(learner, {})
            first.journal.record(JournalEntry({AT: 2, ("other/topic", 3): 5}))
            first.journal.record(JournalEntry({AT: 3, ("other/topic", 3): 5}))
        with closing(opened(tmp_path)) as second:
            ends = [{AT: 2, ("other/topic", 3): 5}, {AT: 3, ("other/topic", 3): 5}]
            assert _ends(second) == ends
            second.journal.to_replay.popleft()  # repeated
            second.save(learner, {})
        with closing(opened(tmp_path)) as third:
            assert _ends(third) == ends[1:]

    def test_what_the_gate_decided_and_whether_lora_waits_stand_beside_the_slice(self, tmp_path: Path) -> None:
        with closing(opened(tmp_path)) as first:
            first.journal.record(JournalEntry({AT: 1}))
            first.journal.record(JournalEntry({AT: 2}, "published"))
            first.journal.record(JournalEntry({AT: 3}, "refused", lagging=True))
            first.journal.record(JournalEntry({AT: 4}, lagging=True, now_ms=7, topic_ids={AT[0]: "id"}, missed={AT: 2}))
        with closing(opened(tmp_path)) as second:
            assert list(second.journal.to_replay) == [
                JournalEntry({AT: 1}),
                JournalEntry({AT: 2}, "published"),
                JournalEntry({AT: 3}, "refused", lagging=True),
                JournalEntry({AT: 4}, lagging=True, now_ms=7, topic_ids={AT[0]: "id"}, missed={AT: 2}),
            ]

    def test_what_goes_beside_is_linked_until_it_changes_but_never_to_the_checkpoint_to_fall_back_to(
        self, tmp_path: Path, learner: Learner
    ) -> None:
        beside, files = {"live/text": torch.ones(3)}, []
        with closing(opened(tmp_path)) as own:
            for tensors in (beside, dict(beside), dict(beside), dict(beside), {"live/text": torch.zeros(3)}):
                own.save(learner, {}, tensors)
                files.append(max(tmp_path.glob("*/[0-9]*/beside.safetensors")).stat().st_ino)
        assert files[0] == files[2] != files[1] == files[3]
        assert files[4] not in files[:4]
        with closing(opened(tmp_path)) as again:
            _, kept = again.load(tiny_learner(LearnerSettings())) or ({}, {})
            assert kept["live/text"].tolist() == [0, 0, 0]

    def test_a_line_cut_short_was_never_learnt(self, tmp_path: Path) -> None:
        with closing(opened(tmp_path)) as first:
            first.journal.record(JournalEntry({AT: 1}))
        (path,) = tmp_path.glob("*/journal-*.jsonl")
        with path.open("a") as file:
            file.write('{"clicks/0": ')
        with closing(opened(tmp_path)) as again:
            assert _ends(again) == [{AT: 1}]
            again.journal.record(JournalEntry({AT: 2}))
        with closing(opened(tmp_path)) as last:
            assert _ends(last) == [{AT: 1}, {AT: 2}]


class TestOwner:
    def test_a_second_one_ends_with_a_clear_error_while_the_first_is_at_work(self, tmp_path: Path) -> None:
        with (
            closing(opened(tmp_path)) as first,
            pytest.raises(AlreadyRunningError, match=rf"another updater \(.*{os.getpid()}.*\) is at work in"),
        ):
            opened(tmp_path)
        first_epoch = first.epoch
        with closing(opened(tmp_path)) as next_one:
            assert next_one.epoch == first_epoch + 1

    def test_the_dead_are_followed_at_once(self, tmp_path: Path) -> None:
        program = (
            "import sys, threading, time; from pathlib import Path\n"
            "from services.updater.checkpoint_store import CheckpointStore\n"
            "store = CheckpointStore(Path(sys.argv[1]), keep_checkpoints=2, stop=threading.Event())\n"
            "print('there', flush=True)\n"
            "time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with closing(opened(tmp_path)) as successor:
            assert successor.epoch == 2

    def test_one_that_hangs_is_taken_over_from_and_fenced(
        self, tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.6)
        monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.2)
        hanging = opened(tmp_path)
        hanging.save(learner, {"number": 1})
        hanging._lease._closed.set()  # no more heartbeats, but it holds the lock
        with closing(opened(tmp_path)) as successor:
            assert successor.load(tiny_learner(LearnerSettings())) == ({"number": 1}, {})
            with pytest.raises(FencedError, match="expected epoch 1, found 2; another updater has taken over"):
                hanging.verify()
            hanging.store.add(shown(9))
            with pytest.raises((FencedError, CheckpointError)):
                hanging.save(learner, {"number": 2})
            hanging.close()
            successor.verify()
            successor.save(learner, {"number": 3})
        with closing(opened(tmp_path)) as third:
            assert third.load(tiny_learner(LearnerSettings())) == ({"number": 3}, {})
            assert third.store.by_request(9) is None


def test_old_epochs_checkpoints_and_journals_are_pruned(tmp_path: Path, learner: Learner) -> None:
    for _ in range(2):
        with closing(opened(tmp_path)) as one:
            for number in range(4):
                one.save(learner, {"number": number})
    (epoch,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert epoch.name == "00000002"
    assert sorted(path.name for path in epoch.iterdir()) == [
        "0000000007", "0000000008", "join.sqlite", "journal-0000000007.jsonl", "journal-0000000008.jsonl",
    ]  # fmt: skip


def _ends(store: CheckpointStore) -> list[dict[tuple[str, int], int]]:
    """Return the ends of the slices that are to be repeated."""
    return [entry.ends for entry in store.journal.to_replay]


def test_slices_that_cannot_be_repeated_are_dropped_and_those_learnt_since_stay(tmp_path: Path) -> None:
    slices = [
        JournalEntry({("clicks", 0): end}, topic_ids={"clicks": "c/1"}, missed={("clicks", 0): 2}) for end in range(5)
    ]
    journal = Journal(tmp_path, 1)
    for each in slices[:4]:
        journal.record(each)
    journal.close()
    journal = Journal(tmp_path, 1)
    assert list(journal.to_replay) == slices[:4]
    journal.to_replay.popleft()  # it was repeated
    journal.abandon()
    journal.record(slices[4])
    journal.close()
    with closing(Journal(tmp_path, 1)) as journal:
        assert list(journal.to_replay) == [slices[0], slices[4]]
