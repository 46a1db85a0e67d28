"""Output paths of a command are checked before it begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.outputs import require_writable_directories, require_writable_files
from services.settings import SettingsError


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/figures.json", "must lie in an existing directory, .*missing is not one; create it first"),
        ("directory", "must be a file, .*directory is a directory"),
        ("file/figures.json", "must lie in an existing directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match=f"`--json` {reason}"):
        require_writable_files({"--json": tmp_path / name})


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    require_writable_files({"--json": kept, "--ranks": tmp_path / "new.csv.gz", "--report": None})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]
    assert kept.read_text() == "before"


def test_a_directory_is_made_or_named(tmp_path: Path) -> None:
    require_writable_directories({"--out": tmp_path / "a" / "b"})
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(SettingsError, match="`--out`"):
            require_writable_directories({"--out": path})


@pytest.mark.parametrize(
    "arguments",
    [
        ["backtest", "--json", "missing/figures.json"],
        ["backtest", "--ranks", "missing/ranks.csv.gz"],
        ["backtest", "--report", "file"],
        ["fit", "--out", "file"],
        ["tune", "--out", "file/under"],
    ],
)
def test_a_command_says_so_before_it_reads_anything(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments, "--items", "none.csv", "--events", "none.csv"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("headwater: ")]
    assert arguments[1] in line
    assert "none.csv" not in line
