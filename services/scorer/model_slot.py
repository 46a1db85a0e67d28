"""The models of one scenario: those it serves, and a few kept in memory, so that a roll-back is only a swap."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.rollout import CANARY, SHADOW, STABLE, Rollout
from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Target:
    """The version that an arm should serve.

    Attributes:
        arm: the arm of the rollout.
        version: the adapter version.
        manifest: the announced manifest; None for a version that only a rollout names.
    """

    arm: str
    version: int
    manifest: Manifest | None = None

    def is_met_by(self, model: ServedModel) -> bool:
        """Return whether a model is this version.

        Digests are compared where known: a registry that was recreated assigns the same numbers to other bundles.
        """
        return model.version == self.version and (
            self.manifest is None or model.manifest.digest == self.manifest.digest
        )


class ModelSlot:
    """Holds a scenario's models. Any thread may apply a rollout to held models; the worker's thread installs new ones.

    Args:
        scenario: the scenario that the models rank for.
        kept_rows: the rows of all models kept beside the deployment; beyond it, the longest unused are dropped.
        on_swap: called with the old and the new deployment at each swap, in the order of swaps.

    Attributes:
        deployment: what is served now.
    """

    def __init__(self, scenario: str, *, kept_rows: int, on_swap: Callable[[Deployment, Deployment], None]) -> None:
        self.scenario = scenario
        self.deployment = Deployment(Rollout(scenario=scenario))
        self._latest: Manifest | None = None
        self._kept: list[ServedModel] = []  # most recently used first
        self._kept_rows, self._on_swap = kept_rows, on_swap
        self._lock = threading.RLock()

    @property
    def is_pinned(self) -> bool:
        """True if the stable arm stays at one version, whatever is published."""
        return self.deployment.rollout.stable_version is not None

    def apply(self, rollout: Rollout | None, latest: Manifest | None) -> list[Target]:
        """Swap all arms whose models are held, and return the targets that must be built.

        Args:
            rollout: the newest rollout; None keeps the current one.
            latest: the newest announced version; None keeps the current one.
        """
        with self._lock:
            self._latest = latest or self._latest
            before, applied = self.deployment, rollout or self.deployment.rollout
            models: dict[str, ServedModel | None] = {STABLE: before.stable, CANARY: None, SHADOW: None}
            missing = []
            for target in self._targets(applied):
                held = next((model for model in self.models() if target.is_met_by(model)), None)
                models[target.arm] = held or self._interim_model(target, applied)
                if held is None:
                    missing.append(target)
            self._swap(Deployment(applied, **models))
            return missing

    def install(self, target: Target, model: ServedModel) -> bool:
        """Serve a model that was built for a target. Returns False if the arm has another target by now."""
        with self._lock:
            if target not in self._targets(self.deployment.rollout):
                return False
            self._swap(Deployment(self.deployment.rollout, **(self.deployment.models | {target.arm: model})))
            return True

    def install_fallback(self, target: Target, model: ServedModel) -> bool:
        """Serve an older version as stable while `target` cannot be loaded. Returns False if the arm is occupied."""
        with self._lock:
            if self.deployment.stable is not None or target not in self._targets(self.deployment.rollout):
                return False
            self._swap(Deployment(self.deployment.rollout, **(self.deployment.models | {STABLE: model})))
            return True

    def serve(self, deployment: Deployment) -> None:
        """Serve a deployment as it is, whatever the targets are."""
        with self._lock:
            self._swap(deployment)

    def unmet_targets(self) -> list[Target]:
        """Return the targets whose arms serve another version or none."""
        with self._lock:
            deployment = self.deployment
            return [
                target
                for target in self._targets(deployment.rollout)
                if (model := deployment.model_of(target.arm)) is None or not target.is_met_by(model)
            ]

    def replace(self, old: ServedModel, new: ServedModel) -> None:
        """Replace a model by the same version over a newer catalogue."""
        with self._lock:
            arms = {arm: new if model is old else model for arm, model in self.deployment.models.items()}
            self._kept = [new if model is old else model for model in self._kept]
            self._swap(Deployment(self.deployment.rollout, **arms))

    def models(self) -> list[ServedModel]:
        """Return all models in memory, those of the deployment first."""
        with self._lock:
            return list({id(model): model for model in (*self.deployment.models.values(), *self._kept)}.values())

    def _targets(self, rollout: Rollout) -> Iterator[Target]:
        wanted: list[tuple[str, int | None]] = [(STABLE, rollout.stable_version)]
        wanted += [(CANARY, rollout.canary.version)] if rollout.canary is not None else []
        wanted += [(SHADOW, rollout.shadow.version)] if rollout.shadow is not None else []
        for arm, version in wanted:
            if version is not None:
                yield Target(arm, version)
            elif self._latest is not None:
                yield Target(arm, self._latest.version, self._latest)

    def _interim_model(self, target: Target, rollout: Rollout) -> ServedModel | None:
        """Return the model that an arm serves until its own is built: the present one; None for a trial of one version.

        A canary or shadow of a named version must not be played by another version.
        """
        arm = {CANARY: rollout.canary, SHADOW: rollout.shadow}.get(target.arm)
        return None if arm is not None and arm.version is not None else self.deployment.model_of(target.arm)

    def _swap(self, deployment: Deployment) -> None:
        before, self.deployment = self.deployment, deployment
        served = deployment.models.values()
        unserved = [
            model for model in before.models.values() if not any(same_version(model, other) for other in served)
        ]
        kept = [model for model in (*unserved, *self._kept) if not any(same_version(model, other) for other in served)]
        self._kept = self._within_bounds(kept)
        self._on_swap(before, deployment)

    def _within_bounds(self, models: list[ServedModel]) -> list[ServedModel]:
        kept: list[ServedModel] = []
        for model in models:
            new = not any(same_version(model, other) for other in kept)
            if new and sum(map(len, kept)) + len(model) <= self._kept_rows:
                kept.append(model)
        return kept


def same_version(first: ServedModel, second: ServedModel) -> bool:
    """Return whether two models are the same version, even if over different catalogues."""
    return first.version == second.version and first.manifest.digest == second.manifest.digest
