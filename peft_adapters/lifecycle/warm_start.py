"""A warm start: what an offline fit leaves, and a learner that begins from it.

```
<directory>/                        a full bundle, as published ones are: scorers can serve it
<directory>/learner/0000000001/     the learner behind it as a checkpoint: optimisers and shoppers too
```

Histories of shoppers never go into a bundle, which travels; they lie in the checkpoint beside it. A full bundle without
one, such as a published version, can be started from as well: optimisers and shoppers then begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from peft_adapters.errors import BundleDigestError, BundleFormatError, ModelValueError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from peft_adapters.lifecycle.gate import GateSettings, judge_candidate
from peft_adapters.lifecycle.publishing import bundle_groups
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import dequantise_rows
from peft_adapters.ranking.shoppers import Shoppers
from peft_adapters.registry.bundle import Bundle, read_bundle, require_encoder, write_bundle
from peft_adapters.registry.manifest import Manifest
from peft_adapters.serving.model_state import probabilities_from_bundle, state_from_bundle

LEARNER_NAME = "learner"

_NUMBER = 1  # of the only checkpoint there
_SETTLED_BATCHES = 10_000  # heads that are fitted go on at the rate that a long-running learner has


def write_warm_start(
    directory: Path,
    learner: Learner,
    *,
    scenario: str,
    watermark_ms: int,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any],
) -> Manifest:
    """Write what a learner is, so that another can begin from it.

    Args:
        directory: where; an earlier one there is replaced.
        learner: what is written.
        scenario: for which ranking it was fitted.
        watermark_ms: event time of the newest event that it has learnt.
        metrics: figures for the manifest.
        extra: what else to keep beside the learner, as JSON can hold it; `start_from` gives it back.

    Raises:
        CheckpointError: the disk refused.
        OSError: the disk refused.
    """
    groups = bundle_groups(learner, full=True)
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
    """Begin from a directory of `write_warm_start`, or from any full bundle.

    Args:
        learner: a fresh one, without items; it gets those of the bundle.
        directory: of the bundle.

    Returns:
        What was kept beside the learner; None where the directory is a bundle alone.

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
    """Put all that a full bundle holds into a fresh learner: LoRA, projections, heads, residuals, counters.

    Its items take the bundle's rows, and are without a text until `add_items` brings one. Optimisers begin anew, the
    heads' at the rate it settles at; shoppers are not in a bundle.

    Raises:
        BundleError: it is no full bundle, or was made for another encoder or adapter.
        ModelValueError: the learner is not a fresh one.
    """
    _require_fresh(learner)
    _require_fit(bundle, learner)
    groups, ranker = bundle.groups, learner.ranker
    lora = {name: weights.float() for name, weights in groups["adapter_model"].items()}
    trained = {name: weights.float() for name, weights in groups.get("next_adapter", {}).items()}
    learner.lora_steps.load_lora(trained or lora, lora)
    learner.projections.load(groups.get("projections", {}))
    learner.add_items([(item_id, "") for item_id in bundle.item_ids])
    heads = groups["heads"]["weights"].float()
    lists = learner.lists
    for own in (
        ranker.heads,
        learner.catalogue_heads,
        learner.lora_steps.heads,
        lists.heads,
        lists.served_heads,
    ):
        own.copy_(heads)  # in place: the optimisers hold these tensors
    for global_preference in (ranker.global_preference, learner.catalogue_global_preference, lists.global_preference):
        global_preference.copy_(groups["heads"]["global_preference"].float())
    probabilities = probabilities_from_bundle(bundle)
    if probabilities is not None:
        learner.lists.outcomes.begin_with(probabilities)
    for role in ROLES:
        rows, residuals = dequantise_rows(groups["residuals"], role)
        ranker.residuals[role][rows] = residuals
    ranker.counters.apply(groups["counters"])
    for optimiser in (learner.heads_optimiser, learner.lora_steps.heads_optimiser, learner.global_preference_optimiser):
        optimiser.load_state_dict({"batches": torch.tensor(_SETTLED_BATCHES)})
    learner.events_learned = bundle.manifest.events_learned


def begin_again(learner: Learner) -> None:
    """Forget all events, keep all weights: counters and shoppers are empty, as before the first event."""
    learner.ranker.counters = Counters()
    learner.ranker.counters.grow(len(learner.catalogue))
    learner.shoppers = Shoppers()
    learner.events_learned = 0


@contextmanager
def put_back(learner: Learner) -> Iterator[None]:
    """Let events be counted, and take the counts back at the end."""
    counters, shoppers = learner.ranker.counters.copy(), learner.shoppers.state_dict()
    events, heads = learner.events_learned, learner.ranker.heads.clone()
    try:
        yield
    finally:
        learner.ranker.counters, learner.ranker.heads, learner.events_learned = counters, heads, events
        learner.shoppers.load_state_dict(shoppers)


def _require_fresh(learner: Learner) -> None:
    if len(learner.catalogue) or learner.batches_learned or learner.events_learned:
        raise ModelValueError(
            f"`learner` must be a fresh one, got one of {len(learner.catalogue)} items and {learner.events_learned} "
            "events; load before items are added"
        )


def _require_fit(bundle: Bundle, learner: Learner) -> None:
    """Check that a bundle stands alone, is intact, passed the gate, and was made for this encoder and adapter."""
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
