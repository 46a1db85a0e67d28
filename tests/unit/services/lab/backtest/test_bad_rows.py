"""A data set with bad rows is backtested without them, and they are named; --strict stops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.data.rows import RefusedRows
from services.lab.offline.inputs import read_catalogue
from services.lab.offline.stream import read_stream

EVENTS = (
    "user_id;timestamp;event_type;item_id;quantity\n"
    "ann;2026-11-01T10:00:00Z;purchase;i1;1\n"
    "ann;2026-11-01T10:01:00Z;purchase;i1;-6\n"
    "bob;2026-11-01T10:02:00Z;purchase;i9;1\n"  # of an item whose own row is bad
    "bob;2026-11-01T10:03:00Z;purchase;i1;1\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "items.csv").write_bytes("item_id,title,price\ni1,mug,1.5\ni9,pot,dear\n".encode("utf-16"))
    (tmp_path / "events.csv").write_text(EVENTS)
    return tmp_path


def test_bad_rows_are_left_out_and_named(data: Path) -> None:
    refused = RefusedRows(strict=False)
    known = {item[0] for item in read_catalogue(data / "items.csv", refused=refused)}
    stream = read_stream(data / "events.csv", known, max_events=None, click_window_seconds=600.0, refused=refused)
    assert [example.user_id for example in stream.examples] == ["ann", "bob"]
    assert refused.count == 3
    assert "items.csv, row 2: `price`: " in refused.named[0]
    assert "events.csv, row 2: `quantity`: " in refused.named[1]
    assert "the row of its item 'i9' was refused" in refused.named[2]


@pytest.mark.parametrize("command", [["backtest"], ["fit", "--out", "warm"]])
def test_strict_stops_at_the_first(data: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *command, "--strict", "--items", "items.csv", "--events", "events.csv"],
        cwd=data,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[5]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("headwater: items.csv, row 2: `price`: ")
