"""The lease on a directory: one owner at a time, and none that hangs."""

import json
import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from peft_adapters.errors import AlreadyRunningError
from services.updater import lease as lease_module
from services.updater.lease import Lease


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.1)


def acquire(path: Path) -> Lease:
    return Lease(path, threading.Event())


def test_a_second_owner_is_refused_by_name_while_the_first_sends_heartbeats(tmp_path: Path) -> None:
    path = tmp_path / "OWNER"
    with closing(acquire(path)):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(AlreadyRunningError, match=rf'another updater \(.*"pid": {os.getpid()}.*\) is at work in'):
            acquire(path)


def test_a_released_lease_is_acquired_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_is_touched", lambda *_: pytest.fail("it waits for a heartbeat"))
    for _ in range(2):
        acquire(tmp_path / "OWNER").close()


def test_an_owner_without_heartbeats_is_replaced_and_does_not_block_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "OWNER"
    with closing(acquire(path)) as hanging:
        hanging._closed.set()  # no more heartbeats, but it holds the lock
        with closing(acquire(path)), pytest.raises(AlreadyRunningError):
            acquire(path)
        acquire(path).close()


def test_a_process_that_is_stopped_does_not_take_over(tmp_path: Path) -> None:
    stop = threading.Event()
    with closing(acquire(tmp_path / "OWNER")) as hanging:
        hanging._closed.set()
        stop.set()
        with pytest.raises(AlreadyRunningError):
            Lease(tmp_path / "OWNER", stop)
