"""What a measurement is worth nothing without: machine, versions, targets; and percentiles."""

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
    """The smallest value that at least `percent` of the values do not exceed; None of none.

    >>> percentile([3.0, 1.0, 2.0], 50)
    2.0
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(values_ms: Sequence[float]) -> dict[str, float | None]:
    """Median, tail and worst of some milliseconds."""
    found = {f"p{percent}_ms": percentile(values_ms, percent) for percent in (50, 90, 99)}
    found["max_ms"] = max(values_ms, default=None)
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def target(
    name: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """One target and whether it is met; None where nothing was measured."""
    limit = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
    holds = None
    if value is not None:
        holds = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return {"name": name, "value": value, **limit, "holds": holds}


def provenance() -> dict[str, Any]:
    """The machine, what else it does, and the versions of what answers."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Writes the figures as JSON, where a file is named."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
