"""The audit log: an entry before each call, an entry with its outcome, and no call without an entry."""

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.audit import AuditError, AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_call_is_on_disk_before_it_begins_and_again_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.jsonl"
    with AuditLog(path).call("adapters.pin", by="ops", address="10.0.0.7", scenario="home", version=3):
        assert [line["outcome"] for line in lines(path)] == ["began"]
    began, done = lines(path)
    assert {**began, "outcome": "done", "at": done["at"]} == done
    assert done["at"] >= began["at"]
    del done["at"]
    what = {"action": "adapters.pin", "scenario": "home", "version": 3}
    assert done == {**what, "outcome": "done", "by": "ops", "address": "10.0.0.7"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_call_that_fails_is_told_with_its_error_and_goes_on_failing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with pytest.raises(ValueError, match="no such version"), AuditLog(path).call("adapters.pin", by="ops"):
        raise ValueError("no such version")
    assert [line["outcome"] for line in lines(path)] == ["began", "failed"]
    assert lines(path)[1]["error"] == "no such version"


def test_nothing_is_done_that_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.mkdir()
    done = []
    with pytest.raises(AuditError, match="cannot be written"), AuditLog(path).call("adapters.pin", by="ops"):
        done.append("pinned")
    assert done == []


def test_what_was_done_stays_done_when_its_end_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with capture_logs() as logs, AuditLog(path).call("adapters.pin", by="ops"):
        path.unlink()
        path.mkdir()
    assert logs[-1]["event"] == "audit_log_failed"


def test_without_a_file_the_process_log_tells() -> None:
    with capture_logs() as logs, AuditLog().call("adapters.pin", by="ops"):
        pass
    assert [(entry["event"], entry["outcome"]) for entry in logs] == [("admin_call", "began"), ("admin_call", "done")]


def test_lines_of_threads_do_not_mix_and_a_file_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)

    def record() -> None:
        for _ in range(5):
            audit.record("try", "refused", by="x" * 500)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(path)) == 20
    path.rename(tmp_path / "audit.1.jsonl")
    audit.record("try", "done", by="ops")
    assert len(lines(path)) == 1


def test_a_line_break_in_a_value_makes_no_second_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path).record("adapters.pin", "done", by="ops", reason='bad\n{"action": "forged"}')
    assert [line["action"] for line in lines(path)] == ["adapters.pin"]
