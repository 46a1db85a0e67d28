"""Smoothed rates of items, computed from counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peft_adapters.ranking.arrays import FloatArray

if TYPE_CHECKING:
    from peft_adapters.ranking.counters import Counters

_SMOOTHING_SHOWN = 10.0
_SMOOTHING_CLICKED = 10.0


def click_through(counters: Counters) -> FloatArray:
    """Return the smoothed log ratio of each item's click-through rate to the mean, [items]; 0 without impressions."""
    mean = max(float(counters.clicked.sum()), 1.0) / max(float(counters.shown.sum()), 1.0)
    lift = (counters.clicked / mean + _SMOOTHING_SHOWN) / (counters.shown + _SMOOTHING_SHOWN)
    return np.log(lift).astype(np.float32)


def conversion(counters: Counters) -> FloatArray:
    """Return the smoothed log ratio of each item's purchases per click to the mean, [items]; 0 without purchases."""
    if not counters.bought.any():
        return np.zeros_like(counters.bought)
    mean = float(counters.bought.sum()) / max(float(counters.clicked.sum()), 1.0)
    lift = (counters.bought / mean + _SMOOTHING_CLICKED) / (counters.clicked + _SMOOTHING_CLICKED)
    return np.log(lift).astype(np.float32)
