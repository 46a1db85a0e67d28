"""Freed memory is returned, and frozen objects are skipped; each test runs in a process of its own."""

import subprocess
import sys

import pytest

HOLES = """
import numpy as np
from pathlib import Path
from services import memory

def resident_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

if {tidy}:
    memory.limit_heaps()
np.ones(5 << 20, dtype=np.uint8)  # freed: by itself the C library keeps a heap for such ones from here on
before = resident_mib()
blocks = [np.ones(5 << 20, dtype=np.uint8) for _ in range(40)]
del blocks[::2]
print(resident_mib() - before)
"""
SCATTERED = """
from pathlib import Path
from services import memory

def resident_mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

before = resident_mib()
blocks = [bytes(50_000) for _ in range(4_000)]
kept = blocks[::20]  # so that the end of the heap stays in use
del blocks
memory.trim()
print(resident_mib() - before)
"""
FROZEN = "import gc; from services import memory; memory.freeze_gc(); print(gc.get_freeze_count())"


def printed(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and /proc")
def test_of_large_pieces_those_that_are_freed_go_back_to_the_system() -> None:
    assert printed(HOLES.format(tidy=False)) > 150  # 200 MiB, half of it freed
    assert printed(HOLES.format(tidy=True)) < 120


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and /proc")
def test_what_was_freed_between_what_is_in_use_goes_back_to_the_system() -> None:
    assert printed(SCATTERED.replace("memory.trim()", "")) > 150  # 200 MB, most of it freed
    assert printed(SCATTERED) < 50


def test_what_stands_is_not_looked_through_again() -> None:
    assert printed(FROZEN) > 1_000
