"""Warm start: the result of an offline fit, and a learner that starts from it.

```
<directory>/                        a full bundle like published ones; scorers can serve it
<directory>/learner/0000000001/     a checkpoint of the learner, with optimisers and shoppers
```

Histories of shoppers are never part of a bundle, which is distributed; they are in the checkpoint beside it. A learner
can also start from a full bundle alone, such as a published version: optimisers and shoppers then start fresh.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_adapters.errors import BundleDigestError, BundleFormatError, ModelValueError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from peft_adapters.lifecycle.gate_rules import judge_candidate
from peft_adapters.registry.bundle import Bundle, read_bundle, require_encoder, write_bundle
from peft_adapters.registry.manifest import Manifest
from peft_adapters.serving.model_state import probabilities_from_bundle, state_from_bundle
from peft_adapters.settings import GateSettings

LEARNER_NAME = "learner"

_NUMBER = 1  # of the only checkpoint


def write_warm_start(
    directory: Path,
    learner: Learner,
    *,
    scenario: str,
    watermark_ms: int,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any],
) -> Manifest:
    """Write a learner, so that another can start from it.

    Args:
        directory: target directory; an earlier warm start there is replaced.
        learner: the learner to write.
        scenario: name of the scenario it was fitted for.
        watermark_ms: event time of the newest learnt event, epoch milliseconds.
        metrics: figures for the manifest.
        extra: further state of the caller, as JSON can hold it; `start_from` returns it.

    Raises:
        CheckpointError: the disk refused.
        OSError: the disk refused.
    """
    groups = learner.bundle_groups(full=True)
    manifest = write_bundle(
        directory,
        groups=groups,
        adapter_config=learner.encoder.adapter_config(),
        item_ids=learner.catalogue.ids,
        scenario=scenario,
        version=1,
        kind="full",
        snapshot=1,
        base_digest=learner.encoder.base_digest,
        offsets={},
        watermark_ms=watermark_ms,
        published_at_ms=time.time_ns() // 1_000_000,
        events_learned=learner.events_learned,
        metrics=dict(metrics),
        gate=judge_candidate(groups, GateSettings()),
    )
    kept = {"bundle": manifest.digest, "extra": dict(extra)}
    save_checkpoint(directory / LEARNER_NAME, _NUMBER, learner, kept)
    return manifest


def start_from(learner: Learner, directory: Path) -> dict[str, Any] | None:
    """Start a learner from a directory of `write_warm_start`, or from any full bundle.

    Args:
        learner: a fresh learner without items; it gets those of the bundle.
        directory: directory of the bundle.

    Returns:
        The `extra` that was written; None if the directory is a bundle alone.

    Raises:
        BundleError: it is no full bundle, is damaged, or was made for another encoder or adapter.
        CheckpointError: the learner beside it is damaged, or was made by another release.
        ModelValueError: the learner is not a fresh one.
    """
    _require_fresh(learner)
    bundle = read_bundle(directory, base_digest=learner.encoder.base_digest)
    _require_fit(bundle, learner)
    if not checkpoint_path(directory / LEARNER_NAME, _NUMBER).exists():
        load_bundle_into(learner, bundle)
        return None
    kept = load_checkpoint(directory / LEARNER_NAME, _NUMBER, learner)
    if kept["bundle"] != bundle.manifest.digest:
        raise BundleDigestError(
            f"{directory / LEARNER_NAME}: expected the learner of bundle {bundle.manifest.digest[:12]}, found that of "
            f"{kept['bundle'][:12]}; copy both from the same fit"
        )
    extra: dict[str, Any] = kept["extra"]
    return extra


def load_bundle_into(learner: Learner, bundle: Bundle) -> None:
    """Load a full bundle into a fresh learner: LoRA, projections, heads, residuals and counters.

    Items take the bundle's rows, and have no text until `add_items` is called with one. Optimisers are new, those of
    heads at their settled rate. Shoppers are not part of a bundle.

    Raises:
        BundleError: it is no full bundle, or was made for another encoder or adapter.
        ModelValueError: the learner is not a fresh one.
    """
    _require_fresh(learner)
    _require_fit(bundle, learner)
    learner.load_bundle_groups(bundle.groups, bundle.item_ids, probabilities_from_bundle(bundle))
    learner.events_learned = bundle.manifest.events_learned


def _require_fresh(learner: Learner) -> None:
    if len(learner.catalogue) or learner.batches_learned or learner.events_learned:
        raise ModelValueError(
            f"`learner` must be a fresh one, got one of {len(learner.catalogue)} items and {learner.events_learned} "
            "events; load before items are added"
        )


def _require_fit(bundle: Bundle, learner: Learner) -> None:
    """Check that a bundle is full and intact, passed the gate, and was made for this encoder and adapter."""
    manifest = bundle.manifest
    name = f"version {manifest.version} of {manifest.scenario!r}"
    if manifest.kind != "full":
        raise BundleFormatError(
            f"{name}: expected a full bundle, found a delta on version {manifest.parent}; start from version "
            f"{manifest.snapshot}, the full one it builds on"
        )
    if manifest.gate.get("decision") == "refused":
        raise BundleFormatError(
            f"{name}: expected a bundle that passed its gate, found one that did not: "
            f"{'; '.join(manifest.gate['reasons'])}; fit again with lower learning rates"
        )
    encoder = learner.encoder
    require_encoder(bundle, base_digest=encoder.base_digest, adapter_config=encoder.adapter_config())
    state_from_bundle(bundle, None, dim=encoder.dim)
