"""Provenance of a result: the machine, its load, and the versions of the libraries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from services.provenance import headwater_version


def machine() -> dict[str, Any]:
    """Return the processor, the cores, the load average, and the versions of the libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "torch_threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "headwater": headwater_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "kafka-python", "noida-db")},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
