"""A bundle without a model, for tests of what carries bundles about."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from peft_adapters.registry.bundle import Manifest, write_bundle


def write_small_bundle(
    directory: Path, version: int = 1, *, seed: int = 0, delta: bool = False, snapshot: int = 1, **fields: Any
) -> Manifest:
    """Write a full bundle, or a delta on the version before; `version` and `seed` decide its content."""
    rng = np.random.default_rng([version, seed])
    chain = {"kind": "delta", "parent": version - 1, "snapshot": snapshot} if delta else {"kind": "full"}
    defaults: dict[str, Any] = {
        "scenario": "home",
        "parent": None,
        "snapshot": version,
        "base_digest": "base-1",
        "offsets": {"headwater.clicks/0": 10 * version},
        "watermark_ms": 1_000 * version,
        "published_at_ms": 2_000 * version,
        "events_learned": 5 * version,
    }
    return write_bundle(
        directory,
        groups={
            "adapter_model": {"lora_A.weight": torch.from_numpy(rng.normal(size=(2, 3)))},
            "residuals": {"rows": rng.normal(size=(4, 3)).astype(np.float32), "index": np.arange(4)},
        },
        adapter_config={"peft_type": "LORA", "target_modules": {"key", "value"}},
        item_ids=[f"item-{version}"],
        version=version,
        **(defaults | chain | fields),
    )
