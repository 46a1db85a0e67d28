"""Memory that is freed goes back to the system, and what stands for good is not looked through again and again."""

import ctypes
import gc

ARENAS = 2
LARGE_BYTES = 4 << 20  # a catalogue's vectors: mapped alone, and unmapped when freed; what answers take is smaller

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h


def limit_heaps() -> None:
    """Have the C library keep less of what was freed; where it is not glibc nothing is done.

    By itself it keeps a heap for each thread, and soon takes large tensors for something to be kept in them. Not for
    who computes with large tensors all the while, as a learner does: each would be mapped anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def trim() -> None:
    """Give back what the heaps hold of freed memory between what is in use, 60 MB of a scorer's; takes some 5 ms."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def freeze_gc() -> None:
    """Have the collector of reference cycles leave alone all that there is now.

    A full collection holds up every thread while it looks at each object: over 4,732 items and 60,000 events that is
    600,000 objects, and .2 to .5 s. What is frozen is freed all the same once nothing refers to it.
    """
    gc.collect()
    gc.freeze()
