"""The models of one scenario: those in the deployment, and a few kept, so that going back to one is a flip."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from peft_adapters.registry.manifest import Manifest
from peft_adapters.registry.rollout import CANARY, SHADOW, STABLE, Rollout
from peft_adapters.serving.served_model import ServedModel
from services.scorer.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Target:
    """What an arm is to hold: one version, or the latest, whose manifest was announced.

    Attributes:
        arm: which.
        version: of the adapter.
        manifest: None of a version that only a rollout names.
    """

    arm: str
    version: int
    manifest: Manifest | None = None

    def is_met_by(self, model: ServedModel) -> bool:
        """Whether a model is it. By digest, too, where known: a registry begun anew gives its numbers again."""
        return model.version == self.version and (
            self.manifest is None or model.manifest.digest == self.manifest.digest
        )


class ModelSlot:
    """Holds a scenario's models. Whoever hears of a rollout flips what is held; the worker's thread places the rest.

    Args:
        scenario: Which ranking.
        kept_rows: Rows of all models kept beside the deployment; more are let go, the longest out of use first.
        show: Called with every new deployment, in the order of the flips.

    Attributes:
        deployment: As it is now.
    """

    def __init__(self, scenario: str, *, kept_rows: int, show: Callable[[Deployment, Deployment], None]) -> None:
        self.scenario = scenario
        self.deployment = Deployment(Rollout(scenario=scenario))
        self._latest: Manifest | None = None
        self._kept: list[ServedModel] = []  # the last in use first
        self._kept_rows, self._show = kept_rows, show
        self._lock = threading.RLock()

    @property
    def is_pinned(self) -> bool:
        """Whether the stable arm stays at one version, whatever is published."""
        return self.deployment.rollout.stable_version is not None

    def obey(self, rollout: Rollout | None, latest: Manifest | None) -> list[Target]:
        """Flip all arms whose models are held, at once; what is left must be built.

        Args:
            rollout: The newest heard of; None changes nothing of it.
            latest: The latest version announced; None changes nothing of it.
        """
        with self._lock:
            self._latest = latest or self._latest
            before, obeyed = self.deployment, rollout or self.deployment.rollout
            models: dict[str, ServedModel | None] = {STABLE: before.stable, CANARY: None, SHADOW: None}
            missing = []
            for target in self._targets(obeyed):
                found = next((model for model in self.models() if target.is_met_by(model)), None)
                models[target.arm] = found or self._meanwhile(target, obeyed)
                if found is None:
                    missing.append(target)
            self._flip(Deployment(obeyed, **models))
            return missing

    def place(self, target: Target, model: ServedModel) -> bool:
        """Put a model that was built into its arm; False when the arm is to hold another one by now."""
        with self._lock:
            if target not in self._targets(self.deployment.rollout):
                return False
            self._flip(Deployment(self.deployment.rollout, **(self.deployment.models | {target.arm: model})))
            return True

    def stand_in(self, target: Target, model: ServedModel) -> bool:
        """Put an older version into the stable arm while `target` cannot be loaded; False if the arm is not empty."""
        with self._lock:
            if self.deployment.stable is not None or target not in self._targets(self.deployment.rollout):
                return False
            self._flip(Deployment(self.deployment.rollout, **(self.deployment.models | {STABLE: model})))
            return True

    def unmet(self) -> list[Target]:
        """The targets whose arms hold another version, or none."""
        with self._lock:
            deployment = self.deployment
            return [
                target
                for target in self._targets(deployment.rollout)
                if (model := deployment.model_of(target.arm)) is None or not target.is_met_by(model)
            ]

    def renew(self, old: ServedModel, new: ServedModel) -> None:
        """Put the same version over other items in the place of what was there."""
        with self._lock:
            arms = {arm: new if model is old else model for arm, model in self.deployment.models.items()}
            self._kept = [new if model is old else model for model in self._kept]
            self._flip(Deployment(self.deployment.rollout, **arms))

    def models(self) -> list[ServedModel]:
        """All that are held, those of the deployment first."""
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

    def _meanwhile(self, target: Target, rollout: Rollout) -> ServedModel | None:
        """What an arm holds until its model is built: what it had, unless it is to try one certain other version."""
        arm = {CANARY: rollout.canary, SHADOW: rollout.shadow}.get(target.arm)
        return None if arm is not None and arm.version is not None else self.deployment.model_of(target.arm)

    def _flip(self, deployment: Deployment) -> None:
        before, self.deployment = self.deployment, deployment
        now = deployment.models.values()
        left = [model for model in before.models.values() if not any(same_version(model, other) for other in now)]
        kept = [model for model in (*left, *self._kept) if not any(same_version(model, other) for other in now)]
        self._kept = self._within_bounds(kept)
        self._show(before, deployment)

    def _within_bounds(self, models: list[ServedModel]) -> list[ServedModel]:
        kept: list[ServedModel] = []
        for model in models:
            new = not any(same_version(model, other) for other in kept)
            if new and sum(map(len, kept)) + len(model) <= self._kept_rows:
                kept.append(model)
        return kept


def same_version(one: ServedModel, other: ServedModel) -> bool:
    """Whether two models are the same version, be it over other items."""
    return one.version == other.version and one.manifest.digest == other.manifest.digest
