"""The spool: order, bounds, and what is left after a process or a disk has failed."""

import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from collector_app import full_disk

from services.collector.spool import Spool, SpoolError, SpoolFullError, SpoolRecord


def opened(path: Path, *, max_events: int = 10_000, max_bytes: int = 10**7) -> Spool:
    return Spool(path, max_events=max_events, max_bytes=max_bytes)


def events(*names: int) -> list[SpoolRecord]:
    return [SpoolRecord("click", b"u1", f"event {name:06d}".encode()) for name in names]


def drained(spool: Spool, *, max_events: int = 1_000) -> list[int]:
    names: list[int] = []
    while waiting := spool.oldest(max_events=max_events, max_bytes=10**6):
        names += [int(entry.record.value.split()[1]) for entry in waiting]
        spool.remove_through(waiting)
    return names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "spool.db"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with closing(opened(path)) as spool:
        yield spool


class TestOrder:
    def test_what_went_in_comes_out_whole_and_in_order(self, spool: Spool) -> None:
        mixed = [
            SpoolRecord("item", b"i", b"\x00\xff"),
            SpoolRecord("click", "ü".encode(), b""),
            SpoolRecord("purchase", b"u", b"{}"),
        ]
        spool.append(mixed[:2])
        spool.append(mixed[2:])
        waiting = spool.oldest(max_events=10, max_bytes=10**6)
        assert [entry.record for entry in waiting] == mixed
        assert [entry.sequence for entry in waiting] == sorted({entry.sequence for entry in waiting})

    def test_looking_takes_nothing_away(self, spool: Spool) -> None:
        spool.append(events(1, 2, 3))
        assert spool.oldest(max_events=2, max_bytes=10**6) == spool.oldest(max_events=2, max_bytes=10**6)
        assert drained(spool, max_events=2) == [1, 2, 3]
        assert spool.oldest(max_events=2, max_bytes=10**6) == []

    def test_a_chunk_ends_at_its_bytes_but_is_never_empty(self, spool: Spool) -> None:
        spool.append(events(*range(10)))
        size_bytes = events(0)[0].size_bytes
        assert len(spool.oldest(max_events=10, max_bytes=3 * size_bytes)) == 3
        assert len(spool.oldest(max_events=10, max_bytes=1)) == 1

    def test_events_that_come_while_others_are_sent_keep_their_place(self, spool: Spool) -> None:
        spool.append(events(1, 2))
        waiting = spool.oldest(max_events=10, max_bytes=10**6)
        spool.append(events(3))
        spool.remove_through(waiting)
        spool.append(events(4))
        assert drained(spool) == [3, 4]

    def test_requests_at_once_keep_their_events_together(self, spool: Spool) -> None:
        def put(first: int) -> None:
            for start in range(first, first + 100, 5):
                spool.append(events(*range(start, start + 5)))

        threads = [threading.Thread(target=put, args=[first]) for first in range(0, 800, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = drained(spool)
        assert sorted(names) == list(range(800))
        assert all(names[at : at + 5] == list(range(names[at], names[at] + 5)) for at in range(0, 800, 5))


class TestBounds:
    def test_all_or_nothing_at_the_bound_of_events(self, path: Path) -> None:
        with closing(opened(path, max_events=3)) as spool:
            spool.append(events(1, 2))
            with pytest.raises(SpoolFullError, match=r"2 events of \d+ bytes wait"):
                spool.append(events(3, 4))
            assert spool.has_room
            spool.append(events(5))
            assert not spool.has_room
            assert drained(spool) == [1, 2, 5]
            assert spool.has_room

    def test_all_or_nothing_at_the_bound_of_bytes(self, path: Path) -> None:
        one = events(1)[0].size_bytes
        with closing(opened(path, max_bytes=3 * one)) as spool:
            spool.append(events(1, 2))
            with pytest.raises(SpoolFullError):
                spool.append(events(3, 4))
            spool.append(events(5))
            assert (len(spool), spool.size_bytes, spool.has_room) == (3, 3 * one, False)
            assert drained(spool) == [1, 2, 5]
            assert (len(spool), spool.size_bytes) == (0, 0)

    def test_counts_are_those_of_the_file_after_a_restart(self, path: Path) -> None:
        with closing(opened(path)) as spool:
            spool.append(events(*range(7)))
            spool.remove_through(spool.oldest(max_events=3, max_bytes=10**6))
            before = len(spool), spool.size_bytes
        with closing(opened(path, max_events=5)) as spool:
            assert (len(spool), spool.size_bytes) == before
            with pytest.raises(SpoolFullError):
                spool.append(events(8, 9))

    def test_the_file_stays_within_what_its_bound_says(self, path: Path) -> None:
        """Space is used again, however many events go through."""
        with closing(opened(path, max_bytes=200_000)) as spool:
            for _ in range(20):
                spool.append([SpoolRecord("click", b"u", b"x" * 190)] * 1_000)
                spool.remove_through(spool.oldest(max_events=1_000, max_bytes=10**6))
        assert path.stat().st_size < 200_000 * 4 / 3

    def test_the_oldest_has_a_time(self, spool: Spool) -> None:
        assert spool.oldest_accepted_ms() is None
        spool.append(events(1))
        first = spool.oldest_accepted_ms()
        spool.append(events(2))
        assert spool.oldest_accepted_ms() == first
        assert first is not None


class TestFailures:
    def test_sent_events_are_no_longer_in_the_file(self, path: Path) -> None:
        with closing(opened(path)) as spool:
            spool.append([SpoolRecord("click", b"user-name-of-ann", b"{}")])
            spool.append(events(*range(100)))
            assert len(drained_raw(spool)) == 101
        assert b"user-name-of-ann" not in path.read_bytes()
        assert not path.with_name("spool.db-wal").exists()

    def test_sent_events_are_in_no_file_of_a_spool_in_use(self, path: Path) -> None:
        """Neither in the database nor in its write-ahead log, and not only once the spool is empty or closed."""

        def in_files(name: bytes) -> bool:
            return any(name in file.read_bytes() for file in path.parent.iterdir())

        with closing(opened(path)) as spool:
            spool.append([SpoolRecord("click", b"user-name-of-ann", b"{}")])
            spool.append([SpoolRecord("click", b"user-name-of-bob", b"{}")])
            assert in_files(b"user-name-of-ann")
            spool.remove_through(spool.oldest(max_events=1, max_bytes=10**6))
            assert not in_files(b"user-name-of-ann")
            assert in_files(b"user-name-of-bob")

    def test_what_a_killed_process_left_in_the_log_is_gone_once_it_is_sent(self, path: Path, tmp_path: Path) -> None:
        with closing(opened(path)) as spool:
            spool.append([SpoolRecord("click", b"user-name-of-ann", b"{}")])
            left = tmp_path / "left"
            shutil.copytree(path.parent, left)
        with closing(opened(left / path.name)) as found:
            found.remove_through(found.oldest(max_events=1, max_bytes=10**6))
            assert all(b"user-name-of-ann" not in file.read_bytes() for file in left.iterdir())

    def test_a_torn_file_is_named_with_its_remedy(self, path: Path) -> None:
        with closing(opened(path)) as spool:
            for number in range(300):
                spool.append(events(number))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(SpoolError, match=rf"the spool {path} cannot be used: .* the file is damaged: put it back"):
            opened(path)

    def test_a_disk_that_takes_events_again_is_no_problem_any_more(self, spool: Spool) -> None:
        with full_disk(), pytest.raises(SpoolError):
            spool.append([SpoolRecord("click", b"u", b"x" * 100_000)])
        assert spool._problem is not None
        assert spool.problem() is None

    def test_only_its_owner_may_read_it(self, path: Path) -> None:
        with closing(opened(path)) as spool:
            spool.append(events(1))
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_what_is_on_disk_at_any_moment_is_whole(self, path: Path, tmp_path: Path) -> None:
        """A copy of the files of a spool in use is what an unclean end leaves."""
        with closing(opened(path)) as spool:
            for count in range(0, 60, 3):
                spool.append(events(count, count + 1, count + 2))
            spool.remove_through(spool.oldest(max_events=5, max_bytes=10**6))
            left = tmp_path / "left"
            shutil.copytree(path.parent, left)
        with closing(opened(left / path.name)) as found:
            assert drained(found) == list(range(5, 60))

    @pytest.mark.parametrize("kill_after", [1, 20, 200])
    def test_sigkill_loses_nothing_that_was_taken(self, path: Path, kill_after: int) -> None:
        with subprocess.Popen([sys.executable, "-c", PUTS_FOR_EVER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(kill_after):
                told = process.stdout.readline()
            process.kill()
            told = (told + process.stdout.read()).splitlines()[-1]
        with closing(opened(path, max_events=10**6)) as spool:
            names = drained(spool)
        assert len(names) >= int(told)
        assert len(names) % 3 == 0  # requests are whole
        assert names == list(range(len(names)))

    def test_one_spool_is_for_one_collector(self, path: Path, spool: Spool) -> None:
        with pytest.raises(SpoolError, match="no other collector has it"):
            opened(path)
        other = [sys.executable, "-c", PUTS_FOR_EVER, str(path)]
        done = subprocess.run(other, capture_output=True, text=True, check=False, timeout=20)
        assert "no other collector has it" in done.stderr
        spool.append(events(1))

    def test_what_is_no_spool_is_named_and_left_alone(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"somebody's letters" * 1_000)
        with pytest.raises(SpoolError, match=r"spool\.db cannot be used: file is not a database"):
            opened(path)
        assert path.read_bytes() == b"somebody's letters" * 1_000

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SpoolError, match=r"file/spool\.db cannot be used"):
            opened(tmp_path / "file" / "spool.db")

    def test_a_full_disk_takes_nothing_and_loses_nothing(self, spool: Spool) -> None:
        spool.append(events(*range(10)))
        with full_disk(), pytest.raises(SpoolError, match="free space on its disk"):
            spool.append([SpoolRecord("click", b"u", b"x" * 100_000)])
        assert len(spool) == 10
        spool.append(events(10))
        assert drained(spool) == list(range(11))

    def test_a_closed_spool_says_so(self, path: Path) -> None:
        spool = opened(path)
        spool.close()
        with pytest.raises(SpoolError, match="closed"):
            spool.append(events(1))
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM spool").fetchone() == (0,)


PUTS_FOR_EVER = """
import itertools, pathlib, sys
from services.collector.spool import Spool, SpoolRecord
spool = Spool(pathlib.Path(sys.argv[1]), max_events=10**6, max_bytes=10**9)
for first in itertools.count(0, 3):
    spool.append([SpoolRecord("click", b"u1", f"event {name:06d}".encode()) for name in range(first, first + 3)])
    print(first + 3, flush=True)
"""


def drained_raw(spool: Spool) -> list[SpoolRecord]:
    waiting = spool.oldest(max_events=10_000, max_bytes=10**7)
    spool.remove_through(waiting)
    return [entry.record for entry in waiting]
