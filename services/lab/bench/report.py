"""Provenance, targets and percentiles of a measurement."""

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

PACKAGES = ("torch", "fastapi", "uvicorn", "httptools", "uvloop", "orjson", "pydantic", "numpy")

log = structlog.get_logger(__name__)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed; None without values.

    >>> percentile([3.0, 1.0, 2.0], 50)
    2.0
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(values_ms: Sequence[float]) -> dict[str, float | None]:
    """Return median, tail percentiles and maximum of times in milliseconds."""
    figures = {f"p{percent}_ms": percentile(values_ms, percent) for percent in (50, 90, 99)}
    figures["max_ms"] = max(values_ms, default=None)
    return {name: None if value is None else round(value, 3) for name, value in figures.items()}


def target(
    name: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Return a target and whether it is met; None if nothing was measured."""
    limit = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
    holds = None
    if value is not None:
        holds = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return {"name": name, "value": value, **limit, "holds": holds}


def provenance() -> dict[str, Any]:
    """Return the machine, its load, and the versions of the libraries."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures as JSON if a file is named."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
