"""A registry that is full, read-only or gone during a replay: learning goes on, and everything is published later."""

import errno
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest
from crash_replay import CrashReplay, StoreFault
from updater_shop import Shop, wait_until

from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.topics import Topics

REGISTRY_MEGABYTES = 8


class Fault(Protocol):
    """Something that befalls a registry, and passes."""

    problem: str  # what the system says
    inside: StoreFault | None  # where the machine lets no test make the fault itself

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Full:
    problem = "No space left on device"
    inside: StoreFault | None = None

    def __init__(self, root: Path) -> None:
        self._root, self._ballast = root, root / "ballast"

    def begin(self) -> None:
        with suppress(OSError):  # a version that comes in between takes of the room
            self._ballast.write_bytes(bytes(shutil.disk_usage(self._root).free))
        assert self._ballast.stat().st_size > 0

    def end(self) -> None:
        self._ballast.unlink()


class ReadOnly:
    problem = "Read-only file system"
    inside: StoreFault | None = None

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self) -> None:
        wait_until(lambda: self._remounted("ro"), what="no file open for writing there")

    def end(self) -> None:
        assert self._remounted("rw")

    def _remounted(self, how: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{how}", str(self._root)], capture_output=True).returncode == 0


class Injected:
    inside: StoreFault | None

    def __init__(self, root: Path, number: int, problem: str) -> None:
        self.problem, self._flag = problem, root / "fault"
        self.inside = StoreFault(number, self._flag)

    def begin(self) -> None:
        self._flag.touch()

    def end(self) -> None:
        self._flag.unlink()


class Gone:
    """The directory is moved away; what is in its place is none, or is empty as a mount point is."""

    inside: StoreFault | None = None

    def __init__(self, root: Path, *, mount_point: bool) -> None:
        self._root, self._mount_point = root, mount_point
        self.problem = "holds no version any more" if mount_point else "Not a directory"

    def begin(self) -> None:
        self._root.rename(self._root.with_suffix(".away"))
        if self._mount_point:
            self._root.mkdir()
        else:
            self._root.touch()

    def end(self) -> None:
        shutil.rmtree(self._root) if self._mount_point else self._root.unlink()
        self._root.with_suffix(".away").rename(self._root)


@pytest.fixture(params=["full", "read-only", "gone", "mount point"])
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fault]:
    root = tmp_path / "registry"
    root.mkdir()
    if request.param in ("gone", "mount point"):
        yield Gone(root, mount_point=request.param == "mount point")
        return
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}[request.param]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={REGISTRY_MEGABYTES}m", "headwater-test", str(root)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        yield Injected(root, number, os.strerror(number))
        return
    yield Full(root) if request.param == "full" else ReadOnly(root)
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_learning_goes_on_and_all_is_published_once_it_is_back(
    fault: Fault, embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path, kills: int
) -> None:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    replay = CrashReplay(Shop(connection, make_topics(connection, partitions=2), tmp_path), seed=3)
    with replay.life(fault=fault.inside):
        for _ in range(1 if kills < 20 else 5):
            replay.send(40)
            replay.wait_for_version(replay.version() + 1)
            before = replay.version()
            fault.begin()
            learnt = replay.learnt()
            replay.send(60)
            wait_until(lambda least=learnt + 10: replay.learnt() > least, what="more learnt")  # type: ignore[misc]
            wait_until(lambda: told(replay, fault), what="told in the log")
            fault.end()
            replay.wait_for_version(before + 1)
        replay.shop.send(*replay.traffic.later_items())
    see_each_try_told_once(replay.log().read_text(), fault)
    replay.check()


def told(replay: CrashReplay, fault: Fault) -> bool:
    return fault.problem in replay.log().read_text()


def see_each_try_told_once(log: str, fault: Fault) -> None:
    """Pauses of 0.2, 0.4 and 0.8 s let three tries begin in a second. One under way as the registry went may say so."""
    failed = [line for line in log.splitlines() if "publication_failed" in line]
    assert any(fault.problem in line for line in failed)
    in_a_second = Counter(line[: len("2026-01-31 09:00:00")] for line in failed)
    assert max(in_a_second.values()) <= 3
