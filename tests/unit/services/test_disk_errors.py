"""Temporary directories, and descriptions of disk errors."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from services.disks import STALE_SECONDS, TemporaryDirectoryError, describe_disk_error, temporary_directory

PREFIX = "headwater-scorer-"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(temporary: Path) -> Path:
    """The directory that a killed process leaves."""
    program = (
        "import time; from services.disks import temporary_directory\n"
        f"with temporary_directory({PREFIX!r}) as made: print(made, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        made = Path(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
    (made / "bundle").mkdir()
    return made


def test_it_is_gone_at_the_end(temporary: Path) -> None:
    with temporary_directory(PREFIX) as made:
        (made / "bundle").mkdir()
    assert list(temporary.iterdir()) == []


def test_those_of_killed_processes_go_at_the_next_start_and_those_in_use_stay(temporary: Path) -> None:
    left = killed(temporary)
    assert left.parent == temporary
    with temporary_directory(PREFIX) as first, temporary_directory(PREFIX) as second:
        assert not left.exists()
        assert first.exists()
        assert second.exists()
        with temporary_directory("headwater-diff-"):
            assert first.exists()


def test_one_without_a_lock_goes_once_nothing_has_changed_in_it_for_a_day(temporary: Path) -> None:
    fresh, stale = temporary / f"{PREFIX}fresh", temporary / f"{PREFIX}stale"
    fresh.mkdir()
    stale.mkdir()
    day_ago = time.time() - STALE_SECONDS - 60
    os.utime(stale, (day_ago, day_ago))
    with temporary_directory(PREFIX):
        assert fresh.exists()
        assert not stale.exists()


def test_without_a_writable_directory_the_error_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    message = r"no temporary directory can be made.*set .* TMPDIR"
    with pytest.raises(TemporaryDirectoryError, match=message), temporary_directory(PREFIX):
        raise AssertionError


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x cannot be used: No space left"),
        (OSError(errno.EROFS, "Read-only", "/tmp/torchinductor"), "no temporary directory can be made: "),  # noqa: S108
        (OSError(errno.EROFS, "Read-only file system"), "a file or standard output cannot be written: Read-only"),
        (
            sqlite3.OperationalError("database or disk is full"),
            "a SQLite file cannot be used: database or disk is full",
        ),
    ],
)
def test_an_error_of_a_disk_is_one_sentence(error: Exception, problem: str) -> None:
    said = describe_disk_error(error)
    assert said is not None
    assert said.startswith(problem)


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")])
def test_other_errors_are_not(error: Exception) -> None:
    assert describe_disk_error(error) is None
