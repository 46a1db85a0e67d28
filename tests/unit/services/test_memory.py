"""Freed memory goes back, and what stands is left alone; each in a process of its own, for all of which it is set."""

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
    memory.give_back()
np.ones(5 << 20, dtype=np.uint8)  # freed: by itself the C library keeps a heap for such ones from here on
before = resident_mib()
blocks = [np.ones(5 << 20, dtype=np.uint8) for _ in range(40)]
del blocks[::2]
print(resident_mib() - before)
"""
FROZEN = "import gc; from services import memory; memory.settle(); print(gc.get_freeze_count())"


def printed(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and /proc")
def test_of_large_pieces_those_that_are_freed_go_back_to_the_system() -> None:
    assert printed(HOLES.format(tidy=False)) > 150  # 200 MiB, half of it freed
    assert printed(HOLES.format(tidy=True)) < 120


def test_what_stands_is_not_looked_through_again() -> None:
    assert printed(FROZEN) > 1_000
