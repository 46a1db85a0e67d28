"""Recovery of an updater whose kept files are damaged or lost."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_encoder, tiny_learner

from peft_adapters.errors import CheckpointError
from peft_adapters.learning.learner import Learner
from peft_adapters.settings import LearnerSettings
from services.updater import checkpoint_store as store_module
from services.updater.checkpoint_store import CheckpointStore
from services.updater.journal import JournalEntry
from services.updater.recovery import inspect_checkpoints
from streams.pending_impressions import PendingImpression

AT = ("clicks", 0)
MODEL_FILES = ("model.safetensors", "beside.safetensors", "state.json", "SHA256SUMS")


def opened(root: Path) -> CheckpointStore:
    return CheckpointStore(root, keep_checkpoints=2, stop=threading.Event())


def shown(request: int) -> PendingImpression:
    return PendingImpression(1_000, "impressions", request, "u", None, ("a",), (0,))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_learner(LearnerSettings(), items=4)


@pytest.fixture
def root(tmp_path: Path, learner: Learner) -> Path:
    """Checkpoints 1 to 3, a slice and an impression after each; 2 and 3 are kept."""
    with closing(opened(tmp_path / "home")) as own:
        for number in (1, 2, 3):
            own.save(learner, {"number": number, "offsets": {"clicks/0": number}}, {"live": torch.ones(2)})
            own.journal.record(JournalEntry({AT: number}))
            own.store.add(shown(number))
    return tmp_path / "home"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def epoch(root: Path) -> Path:
    return max(path for path in root.iterdir() if path.name.isdigit())


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("OWNER", "join.sqlite-wal", "join.sqlite-shm")
    }


def went_on_from(root: Path) -> tuple[int, list[int], list[int]]:
    """Number of the checkpoint, slices to repeat, and requests of waiting impressions; as a start finds them."""
    with closing(opened(root)) as again:
        extra, beside = again.load(tiny_learner(LearnerSettings())) or ({}, {})
        assert beside["live"].tolist() == [1, 1]
        waiting = [number for number in range(1, 5) if again.store.by_request(number)]
        return extra["number"], [each.ends[AT] for each in again.journal.to_replay], waiting


def test_an_intact_start_goes_on_from_the_newest(root: Path) -> None:
    assert went_on_from(root) == (3, [3], [1, 2])


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_newest_checkpoint_costs_one_step_back(root: Path, name: str, damage: Any) -> None:
    damage(epoch(root) / "0000000003" / name)
    assert went_on_from(root) == (2, [2, 3], [1])
    assert went_on_from(root) == (2, [2, 3], [1])  # what was fallen back to stands in the new epoch


def test_a_newest_checkpoint_that_is_gone_costs_one_step_back(root: Path) -> None:
    shutil.rmtree(epoch(root) / "0000000003")
    assert went_on_from(root) == (2, [2, 3], [1])


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"\0" * path.stat().st_size)])
def test_a_damaged_join_state_is_replaced_by_the_copy_in_the_checkpoint(root: Path, damage: Any) -> None:
    store = epoch(root) / "join.sqlite"
    if damage is flip:
        with store.open("r+b") as file:
            file.seek(100)
            file.write(b"\xff" * 2_000)
    else:
        damage(store)
    assert went_on_from(root) == (3, [3], [1, 2])


def test_a_join_state_that_has_lost_its_last_commits_is_replaced_by_the_copy(root: Path) -> None:
    """As a write-ahead log that was cut short leaves it: a whole file, of before the first checkpoint."""
    with closing(sqlite3.connect(epoch(root) / "join.sqlite")) as db, db:
        db.execute("DELETE FROM meta WHERE key = 'checkpoint'")
    assert went_on_from(root) == (3, [3], [1, 2])


def test_a_start_writes_nothing_into_the_join_state_that_it_reads(root: Path) -> None:
    store = epoch(root) / "join.sqlite"
    with closing(sqlite3.connect(store)) as db:  # keeps the write-ahead log from being removed
        db.execute("INSERT OR REPLACE INTO meta VALUES ('other', 'value')")
        db.commit()
        log = store.with_name("join.sqlite-wal").read_bytes()
        (epoch(root) / "journal-0000000003.jsonl").write_bytes(b"{nonsense\n")
        with pytest.raises(CheckpointError):
            opened(root)
        assert store.with_name("join.sqlite-wal").read_bytes() == log


def test_a_damaged_join_state_and_model_cost_one_step_back(root: Path) -> None:
    cut(epoch(root) / "join.sqlite")
    cut(epoch(root) / "0000000003" / "model.safetensors")
    assert went_on_from(root) == (2, [2, 3], [1])


@pytest.mark.parametrize("lost", ["missing", "empty", "without tables"])
def test_a_lost_join_state_is_an_error_that_names_the_remedy_and_deletes_nothing(root: Path, lost: str) -> None:
    store = epoch(root) / "join.sqlite"
    store.unlink()
    if lost == "empty":
        store.touch()
    if lost == "without tables":
        with closing(sqlite3.connect(store)) as db:
            db.execute("VACUUM")
    before = files(root)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"join\.sqlite is (missing|empty), and checkpoints lie beside it; put"
        ):
            opened(root)
    assert files(root) == before
    shutil.copy(epoch(root) / "0000000003" / "join.sqlite", store)  # as the message says
    assert went_on_from(root) == (3, [3], [1, 2])


def test_with_no_checkpoint_that_verifies_nothing_is_deleted(root: Path) -> None:
    for number in (2, 3):
        cut(epoch(root) / f"{number:010d}" / "model.safetensors")
    before = files(root)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be used: .*0000000003.*0000000002.*put the files"
    ):
        opened(root)
    assert files(root) == before


def test_older_epochs_stay_until_the_new_one_has_loaded(root: Path, learner: Learner) -> None:
    for _ in range(3):  # starts that end before they load leave one epoch each, and only the newest stays
        opened(root).close()
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["00000001", "00000004"]
    with closing(opened(root)) as again:
        again.load(tiny_learner(LearnerSettings()))
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["00000005"]


def test_a_start_that_cannot_load_deletes_nothing(root: Path) -> None:
    with closing(opened(root)) as other, pytest.raises(CheckpointError, match="encoder"):
        other.load(tiny_learner(LearnerSettings(), encoder=tiny_encoder(lora_layers=2)))
    assert went_on_from(root) == (3, [3], [1, 2])


def test_slices_carried_over_to_a_later_journal_are_repeated_once(tmp_path: Path, learner: Learner) -> None:
    beside = {"live": torch.ones(2)}
    with closing(opened(tmp_path)) as own:
        own.save(learner, {"number": 1}, beside)
        for number in (1, 2, 3):
            own.journal.record(JournalEntry({AT: number}))
    with closing(opened(tmp_path)) as own:
        own.load(tiny_learner(LearnerSettings()))
        own.journal.to_replay.popleft()
        own.save(learner, {"number": 2}, beside)  # in the middle of the repetition: 2 and 3 are carried over
        own.journal.to_replay.clear()
        own.journal.record(JournalEntry({AT: 4}))
    cut(epoch(tmp_path) / "0000000002" / "model.safetensors")
    assert went_on_from(tmp_path) == (1, [1, 2, 3, 4], [])


def test_killed_between_the_new_journal_and_the_commit_repeats_once(
    root: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(root)) as own:
        own.load(tiny_learner(LearnerSettings()))
        monkeypatch.setattr(own.store, "commit", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            own.save(learner, {"number": 4}, {"live": torch.ones(2)})
    assert went_on_from(root) == (3, [3], [1, 2])


class TestDamagedJournal:
    @pytest.mark.parametrize("line", [b"{nonsense", b"[]", b'{"ends": 3}', b"\xff\xfe", b'{"now_ms": 1}'])
    def test_a_damaged_line_is_named_with_its_remedy(self, root: Path, line: bytes) -> None:
        path = epoch(root) / "journal-0000000003.jsonl"
        path.write_bytes(line + b"\n" + path.read_bytes())
        before = files(root)
        with pytest.raises(CheckpointError, match=rf"line 1 of journal {path} is damaged: .*; put the file back"):
            opened(root)
        assert files(root) == before
        path.write_bytes(b"")  # that line and all after it deleted, as the message says
        assert went_on_from(root) == (3, [], [1, 2])

    def test_a_last_line_cut_short_is_what_a_kill_leaves(self, root: Path) -> None:
        with (epoch(root) / "journal-0000000003.jsonl").open("ab") as file:
            file.write(b'{"ends": {"cli')
        assert went_on_from(root) == (3, [3], [1, 2])

    def test_what_no_kill_leaves_at_the_end_is_named(self, root: Path) -> None:
        with (epoch(root) / "journal-0000000003.jsonl").open("ab") as file:
            file.write(b"\xff\xff")
        with pytest.raises(CheckpointError, match=r"line 2 of journal .* is damaged"):
            opened(root)

    def test_a_changed_digit_is_damage(self, root: Path) -> None:
        path = epoch(root) / "journal-0000000003.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"clicks/0": 3', b'"clicks/0": 7'))
        with pytest.raises(CheckpointError, match=rf"line 1 of journal {path} is damaged: .*checksum"):
            opened(root)

    def test_lines_of_earlier_releases_have_no_checksum(self, root: Path) -> None:
        for number in (2, 3):
            line = json.dumps({"ends": {"clicks/0": number}, "now_ms": 0})
            (epoch(root) / f"journal-{number:010d}.jsonl").write_text(f"{line}\n")
        cut(epoch(root) / "0000000003" / "model.safetensors")
        assert went_on_from(root) == (2, [2, 3], [1])

    def test_lines_lost_in_the_middle_of_a_step_back_are_named(self, root: Path) -> None:
        with closing(opened(root)) as own:
            own.load(tiny_learner(LearnerSettings()))
            own.journal.record(JournalEntry({AT: 4}))
        path = epoch(root) / "journal-0000000003.jsonl"
        path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
        cut(epoch(root) / "0000000003" / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"lines are missing before line 1 of journal {path}; put"):
            opened(root)

    def test_the_journal_of_a_checkpoint_that_counts_is_not_missed_silently(self, root: Path) -> None:
        (epoch(root) / "journal-0000000003.jsonl").unlink()
        with pytest.raises(CheckpointError, match=r"journal .*0000000003\.jsonl is missing; put it back .* empty file"):
            opened(root)
        (epoch(root) / "journal-0000000003.jsonl").touch()  # as the message says
        assert went_on_from(root) == (3, [], [1, 2])

    def test_an_older_journal_that_nobody_needs_holds_up_nothing(self, root: Path) -> None:
        path = epoch(root) / "journal-0000000002.jsonl"
        path.unlink()
        path.mkdir()
        assert went_on_from(root) == (3, [3], [1, 2])

    def test_a_missing_journal_that_a_step_back_needs_is_named(self, root: Path) -> None:
        cut(epoch(root) / "0000000003" / "model.safetensors")
        (epoch(root) / "journal-0000000002.jsonl").unlink()
        with pytest.raises(CheckpointError, match=r"journal .*0000000002\.jsonl is missing"):
            opened(root)


def test_with_a_large_join_state_checkpoints_without_a_copy_are_not_fallen_back_to(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SMALL_BYTES", 0)
    with closing(opened(tmp_path)) as own:
        for number in (1, 2, 3, 4):
            if number == 2:
                own._copies._next = float("inf")  # not due again
            own.save(learner, {"number": number}, {"live": torch.ones(2)})
            own.journal.record(JournalEntry({AT: number}))
            own.store.add(shown(number))
    assert sorted(path.name for path in epoch(tmp_path).iterdir() if path.is_dir()) == ["0000000001", "0000000004"]
    cut(epoch(tmp_path) / "0000000004" / "model.safetensors")
    assert went_on_from(tmp_path) == (1, [1, 2, 3, 4], [])


def test_a_copy_that_fails_is_logged_and_the_older_one_stays(
    root: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with closing(opened(root)) as own:
        own.load(tiny_learner(LearnerSettings()))
        monkeypatch.setattr("services.updater.checkpoint_store.copy_store", full)
        own.save(learner, {"number": 4}, {"live": torch.ones(2)})
    assert {path.name for path in epoch(root).iterdir() if path.is_dir()} == {"0000000003", "0000000004"}


def test_the_survey_says_what_can_be_used(root: Path) -> None:
    assert [(found.number, found.problem) for found in inspect_checkpoints(root)] == [(2, None), (3, None)]
    (older, newest) = inspect_checkpoints(root)
    assert (newest.epoch, newest.offsets) == (1, {"clicks/0": 3})
    assert newest.size_bytes > 1_000
    cut(epoch(root) / "0000000003" / "model.safetensors")
    before = files(root)
    (older, newest) = inspect_checkpoints(root)
    assert older.problem is None
    assert newest.problem is not None
    assert "model.safetensors is not the file that SHA256SUMS names" in newest.problem
    assert files(root) == before


def test_the_survey_of_a_checkpoint_that_is_deleted_meanwhile_shows_the_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.updater.recovery.checkpoint_numbers", lambda _: [1, 2, 3])
    assert [found.number for found in inspect_checkpoints(root)] == [2, 3]


def test_a_directory_in_the_way_is_named_with_its_remedy(root: Path) -> None:
    (root / "OWNER").unlink()
    (root / "OWNER").mkdir()
    with pytest.raises(CheckpointError, match=r"OWNER'; a file lies where a directory belongs.*move it away"):
        opened(root)


def test_a_torn_owner_file_is_written_anew(root: Path) -> None:
    (root / "OWNER").write_bytes(b"\xff\0{")
    assert went_on_from(root)[0] == 3
    assert json.loads((root / "OWNER").read_text())["pid"] > 0
