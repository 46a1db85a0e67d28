"""Decorator that compiles numerical loops with numba.

With numpy, scipy and torch, a ranking of a hundred candidates spends most of its time on call overhead. A compiled loop
runs a whole step, for one context or a batch: the same input gives the same bits, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and cache the result on disk where that is possible.

    Sums may be reordered, the same way each time, so that vectors are multiplied eight numbers at a time.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        result: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable cache directory: compiled again in each process
        result = numba.njit(**options)(function)
    return result
