"""From a learner to a bundle: what changed since the parent, or all of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from torch import Tensor

from peft_adapters.errors import RegistryError, RegistryUnavailableError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.ranking.ranker import ROLES
from peft_adapters.ranking.residual_rows import quantise_rows
from peft_adapters.registry.bundle import Manifest, write_bundle
from peft_adapters.registry.ownership import Owner
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention

DEFAULT_SNAPSHOT_EVERY = 20
DEFAULT_RETENTION = Retention(versions=12 * DEFAULT_SNAPSHOT_EVERY)

log = structlog.get_logger(__name__)


class Publisher:
    """Turn a learner's state into the next version of its scenario.

    The first version after a start is a full bundle, then come deltas, and a full one again every `snapshot_every`.

    Args:
        learner: whose state is published; this object marks what was.
        registry: where to.
        scenario: under which name.
        owner: in whose name; it claims the scenario before its first version, and is fenced once another does.
        staging: a directory for the bundle before it is uploaded.
        gate: which judges candidates.
        snapshot_every: versions from one full bundle to the next.
        retention: which published versions are kept.
        secret_fingerprint: of the secret that shoppers' ids are hidden with; scorers must have the same.
        sign: gives manifests their signatures; None leaves them without. What the gate refused is never signed.
    """

    def __init__(
        self,
        learner: Learner,
        registry: AdapterRegistry,
        *,
        scenario: str,
        owner: Owner,
        staging: Path,
        gate: Gate,
        snapshot_every: int = DEFAULT_SNAPSHOT_EVERY,
        retention: Retention = DEFAULT_RETENTION,
        secret_fingerprint: str | None = None,
        sign: Callable[[Manifest], Manifest] | None = None,
    ) -> None:
        self._learner, self._registry, self._scenario = learner, registry, scenario
        self._owner, self._is_owner = owner, False
        self._staging, self._gate = staging, gate
        self._snapshot_every, self._retention = snapshot_every, retention
        self._sign, self._secret_fingerprint = sign, secret_fingerprint
        self._parent: Manifest | None = None  # published by this process; None: the next bundle is a full one
        self._published_items = 0

    def candidate(
        self, *, offsets: Mapping[str, int], watermark_ms: int, metrics: Mapping[str, float]
    ) -> tuple[Path, Manifest]:
        """Write the next version beside the registry and let the gate judge it.

        Raises:
            AlreadyRunningError: an updater with other checkpoints publishes to the scenario.
            RegistryUnavailableError: the registry does not say what the newest version is, or has lost it.
            OSError: the disk refused.
        """
        if not self._is_owner:
            self._registry.claim(self._scenario, self._owner)
            self._is_owner = True
        newest = self._registry.latest(self._scenario)
        version = self._registry.next_version(self._scenario)
        parent = self._parent
        if newest is None and parent is not None:  # as an empty mount point shows it
            raise RegistryUnavailableError(
                f"registry {self._registry.url} holds no version any more, {parent.version} was published to it; bring "
                "it back, or start this updater again to begin anew"
            )
        full = parent is None or newest is None or newest.version != parent.version
        full = full or version - newest.snapshot >= self._snapshot_every  # type: ignore[union-attr]
        full = full or self._learner.ranker.counters.rewritten
        groups = bundle_groups(self._learner, full=full)
        judged = self._gate.judge(groups)
        directory = self._staging / f"{version:08d}"
        shutil.rmtree(directory, ignore_errors=True)
        manifest = write_bundle(
            directory,
            groups=groups,
            adapter_config=self._learner.encoder.adapter_config(),
            item_ids=self._learner.catalogue.ids[0 if full else self._published_items :],
            scenario=self._scenario,
            version=version,
            kind="full" if full else "delta",
            parent=newest.version if newest else None,
            snapshot=version if full else newest.snapshot,  # type: ignore[union-attr]
            base_digest=self._learner.encoder.base_digest,
            offsets=dict(offsets),
            watermark_ms=watermark_ms,
            published_at_ms=time.time_ns() // 1_000_000,
            events_learned=self._learner.events_learned,
            metrics=dict(metrics),
            gate=judged,
            secret_fingerprint=self._secret_fingerprint,
            sign=self._sign if judged["decision"] != "refused" else None,
        )
        return directory, manifest

    def publish(self, directory: Path, manifest: Manifest) -> None:
        """Make a candidate that passed the newest version.

        Raises:
            FencedError: another updater has claimed the scenario.
            RegistryUnavailableError: the store failed; the learner's changes stay unpublished and go with the next.
        """
        self._registry.publish(directory, manifest, owner=self._owner)
        self._learner.mark_published()
        self._parent, self._published_items = manifest, len(self._learner.catalogue)
        shutil.rmtree(directory, ignore_errors=True)
        if manifest.kind == "full":
            self._prune()

    def begin_anew(self) -> None:
        """Make the next bundle a full one, as after the learner went back: a delta would not say so."""
        self._parent = None

    def keep_refused(self, directory: Path, manifest: Manifest) -> None:
        """Put a refused candidate aside for inspection; its changes stay unpublished."""
        self._registry.keep_refused(directory, manifest)
        shutil.rmtree(directory, ignore_errors=True)

    def _prune(self) -> None:
        try:
            self._registry.prune(self._scenario, self._retention)
        except RegistryError as error:  # what is published is published; the next full one prunes again
            log.warning("registry_not_pruned", problem=str(error))


def bundle_groups(learner: Learner, *, full: bool) -> dict[str, dict[str, Tensor]]:
    """Tensors of a bundle: all of the learner's state that scores follow from, or what changed since the parent."""
    ranker = learner.ranker
    residuals: dict[str, Tensor] = {}
    for role in ROLES:
        residuals |= quantise_rows(role, ranker.residuals[role], range(len(ranker)) if full else learner.touched[role])
    projections = {name: weights.half() for name, weights in learner.projections.served.items()}
    groups: dict[str, dict[str, Tensor]] = {"projections": projections} if projections else {}
    ahead = learner.lora_steps.ahead
    if ahead is not None:
        groups["next_adapter"] = {name: weights.half() for name, weights in ahead.lora.items()}
    return groups | {
        "adapter_model": {name: weights.half() for name, weights in learner.lora_steps.served.items()},
        "heads": {"weights": ranker.heads.clone(), "global_preference": ranker.global_preference.clone()}
        | _probabilities(learner),
        "residuals": residuals,
        "counters": ranker.counters.full() if full else ranker.counters.delta(),
    }


def _probabilities(learner: Learner) -> dict[str, Tensor]:
    """What says how likely outcomes are, where any is learnt."""
    known = learner.lists.outcomes.probabilities()
    return {} if known is None else {name: value for name, value in known._asdict().items() if value is not None}
