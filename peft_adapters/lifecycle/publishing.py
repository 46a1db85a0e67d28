"""Publication of a learner: full bundles, and deltas on the previous version."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from peft_adapters.errors import RegistryError, RegistryUnavailableError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate import Gate
from peft_adapters.registry.bundle import Manifest, write_bundle
from peft_adapters.registry.ownership import Owner
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention

DEFAULT_SNAPSHOT_EVERY = 20
DEFAULT_RETENTION = Retention(versions=12 * DEFAULT_SNAPSHOT_EVERY)

log = structlog.get_logger(__name__)


class Publisher:
    """Publisher of a learner's state as versions of its scenario.

    The first version after a start is a full bundle; deltas follow, and a full bundle every `snapshot_every` versions.

    Args:
        learner: the learner to publish; its changes are marked as published.
        registry: registry that the versions go to.
        scenario: name of the scenario.
        owner: owner that claims the scenario before its first version, and is fenced once another owner claims it.
        staging: directory for a bundle before it is uploaded.
        gate: gate that judges candidates.
        snapshot_every: number of versions from one full bundle to the next.
        retention: rule for the published versions to keep.
        secret_fingerprint: fingerprint of the secret that hides shoppers' ids; scorers must have the same.
        sign: function that signs a manifest; None leaves manifests unsigned. Refused candidates are never signed.
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
        self._parent: Manifest | None = None  # last version published by this process; None makes the next bundle full
        self._published_items = 0

    def candidate(
        self, *, offsets: Mapping[str, int], watermark_ms: int, metrics: Mapping[str, float]
    ) -> tuple[Path, Manifest]:
        """Write the next version to the staging directory, and let the gate judge it.

        Args:
            offsets: offsets that were learnt, by `topic/partition`.
            watermark_ms: event time of the newest learnt event, epoch milliseconds.
            metrics: figures for the manifest.

        Returns:
            The directory of the bundle, and its manifest with the gate's decision.

        Raises:
            AlreadyRunningError: an updater with other checkpoints publishes to the scenario.
            RegistryUnavailableError: the newest version is unknown, or the registry has lost it.
            OSError: the disk refused.
        """
        if not self._is_owner:
            self._registry.claim(self._scenario, self._owner)
            self._is_owner = True
        newest = self._registry.latest(self._scenario)
        version = self._registry.next_version(self._scenario)
        parent = self._parent
        if newest is None and parent is not None:  # such as an empty mount point
            raise RegistryUnavailableError(
                f"registry {self._registry.url} holds no version any more, {parent.version} was published to it; bring "
                "it back, or start this updater again to begin a new chain"
            )
        full = parent is None or newest is None or newest.version != parent.version
        full = full or version - newest.snapshot >= self._snapshot_every  # type: ignore[union-attr]
        full = full or self._learner.requires_full_bundle
        groups = self._learner.bundle_groups(full=full)
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
        """Publish a candidate that passed the gate.

        Raises:
            FencedError: another updater has claimed the scenario.
            RegistryUnavailableError: the store failed; the learner's changes go with the next version.
        """
        self._registry.publish(directory, manifest, owner=self._owner)
        self._learner.mark_published()
        self._parent, self._published_items = manifest, len(self._learner.catalogue)
        shutil.rmtree(directory, ignore_errors=True)
        if manifest.kind == "full":
            self._prune()

    def force_full(self) -> None:
        """Make the next bundle a full one, as after a rollback, which a delta cannot express."""
        self._parent = None

    def keep_refused(self, directory: Path, manifest: Manifest) -> None:
        """Keep a refused candidate in the registry for inspection; its changes stay unpublished."""
        self._registry.keep_refused(directory, manifest)
        shutil.rmtree(directory, ignore_errors=True)

    def _prune(self) -> None:
        try:
            self._registry.prune(self._scenario, self._retention)
        except RegistryError as error:  # the version is published all the same; the next full one prunes again
            log.warning("registry_not_pruned", problem=str(error))
