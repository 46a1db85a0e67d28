"""The rollout document: which version of a scenario shoppers are answered from, which some try, which is only watched.

It lies as `<scenario>/ROLLOUT.json` in the registry, and is announced under the key `<scenario>/rollout`. A scenario
without one follows the latest version. Each change here gives a new document, one revision on; nothing is written.
Free of torch.
"""

import hashlib
import time
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from peft_adapters.errors import RolloutError, RolloutFormatError
from peft_adapters.registry.manifest import SCENARIO_PATTERN, Count, TimeMs, Version, check_scenario

STABLE, CANARY, SHADOW = "stable", "canary", "shadow"
ARMS = (STABLE, CANARY, SHADOW)
ROLLOUT_NAME = "ROLLOUT.json"
ROLLOUT_LIMIT_BYTES = 16_384
KEY_SUFFIX = "/rollout"
TEXT_LIMIT = 500  # characters of a reason, or of who gave it


class Canary(BaseModel):
    """A version that answers some shoppers.

    Attributes:
        version: which; None follows the latest.
        percent: of shoppers, above 0 and at most 100.
        auto_rollback: whether it ends by itself once it is known to be worse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version | None = None
    percent: float = Field(gt=0, le=100, allow_inf_nan=False)
    auto_rollback: bool = False


class Shadow(BaseModel):
    """A version that scores too and never answers; None follows the latest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version | None = None


class Rollout(BaseModel):
    """What the workers of a scenario serve.

    Attributes:
        scenario: which ranking.
        revision: counts up with every change; 0 is what holds before the first.
        stable_version: answers all whom no canary does; None follows the latest.
        canary: answers some; only beside a pinned stable version, so that the two stay what is compared.
        shadow: is compared, and never answers.
        changed_at_ms: when, epoch milliseconds.
        changed_by: who, as the command or the API key says.
        reason: in their words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: str = Field(pattern=f"^{SCENARIO_PATTERN}$")
    revision: Count = 0
    stable_version: Version | None = None
    canary: Canary | None = None
    shadow: Shadow | None = None
    changed_at_ms: TimeMs = 0
    changed_by: str = Field(default="", max_length=TEXT_LIMIT)
    reason: str = Field(default="", max_length=TEXT_LIMIT)

    @property
    def versions(self) -> frozenset[int]:
        """The versions named; those who follow the latest name none."""
        arms = (self.canary, self.shadow)
        named = {self.stable_version, *(arm.version for arm in arms if arm is not None)}
        return frozenset(version for version in named if version is not None)

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        if self.canary is not None and self.stable_version is None:
            raise ValueError("`canary` needs a pinned `stable_version` to stand beside, got None; pin one first")
        for name, arm in (("canary", self.canary), ("shadow", self.shadow)):
            if arm is not None and arm.version == self.stable_version:
                shown = self.stable_version or "the latest"
                raise ValueError(f"`{name}` must be another version than the stable one, got {shown} for both")
        return self

    # ---- changes

    def pinned(self, version: int, **by: str) -> "Rollout":
        """All are answered from one version; a canary ends.

        Args:
            version: which.
            **by: `changed_by` and `reason`.

        Raises:
            RolloutError: a field is against its rule.
        """
        return self._next(stable_version=version, canary=None, shadow=self._shadow_beside(version), **by)

    def unpinned(self, **by: str) -> "Rollout":
        """The latest is followed again; a canary ends, and so does a shadow of the latest.

        Raises:
            RolloutError: a field is against its rule.
        """
        return self._next(stable_version=None, canary=None, shadow=self._shadow_beside(None), **by)

    def with_canary(self, canary: Canary | None, *, latest: int, **by: str) -> "Rollout":
        """Some are answered from another version, or no more. The stable one is held at what it is now.

        Raises:
            RolloutError: it is the stable version, or a field is against its rule.
        """
        stable = self.stable_version if canary is None else self.stable_or(latest)
        return self._next(stable_version=stable, canary=canary, **by)

    def with_shadow(self, shadow: Shadow | None, *, latest: int, **by: str) -> "Rollout":
        """Another version scores too, or no more. Beside a shadow of the latest the stable one is held.

        Raises:
            RolloutError: it is the stable version, or a field is against its rule.
        """
        holds = shadow is not None and shadow.version is None
        stable = self.stable_or(latest) if holds else self.stable_version
        return self._next(stable_version=stable, shadow=shadow, **by)

    def promoted(self, *, latest: int, **by: str) -> "Rollout":
        """The canary's version answers all, pinned.

        Raises:
            RolloutError: there is no canary, or a field is against its rule.
        """
        if self.canary is None:
            raise RolloutError(f"scenario {self.scenario!r} has no canary to promote; start one, or pin a version")
        return self.pinned(self.canary.version or latest, **by)

    def stable_or(self, latest: int) -> int:
        """The version that answers all whom no canary does, given what the latest is."""
        return latest if self.stable_version is None else self.stable_version

    def _shadow_beside(self, stable: int | None) -> Shadow | None:
        return None if self.shadow is not None and self.shadow.version == stable else self.shadow

    def _next(self, **changes: Any) -> "Rollout":
        changes = {"changed_at_ms": time.time_ns() // 1_000_000, "changed_by": "", "reason": ""} | changes
        try:
            return Rollout.model_validate(
                {name: getattr(self, name) for name in Rollout.model_fields} | changes | {"revision": self.revision + 1}
            )
        except ValidationError as error:
            raise RolloutError(f"scenario {self.scenario!r}: {_texts(error)}") from None


def rollout_key(scenario: str) -> bytes:
    """Key of a scenario's rollout on the topic of the adapters.

    >>> rollout_key("home")
    b'home/rollout'
    """
    return f"{check_scenario(scenario)}{KEY_SUFFIX}".encode()


def rollout_bytes(rollout: Rollout) -> bytes:
    """The document as it lies in the registry and travels."""
    return rollout.model_dump_json(indent=1).encode()


def rollout_etag(rollout: Rollout) -> str:
    """Tells one document from another, for entity tags: SHA-256 of its bytes."""
    return hashlib.sha256(rollout_bytes(rollout)).hexdigest()


def parse_rollout(data: bytes, *, scenario: str, source: str) -> Rollout:
    """Read a document; `source` names it in errors.

    Raises:
        RolloutFormatError: it is none, or another scenario's.
    """
    try:
        rollout = Rollout.model_validate_json(data)
    except ValidationError as error:
        raise RolloutFormatError(
            f"{source}: expected a rollout, found one that breaks its rules: {_texts(error)}; delete the file"
        ) from error
    if rollout.scenario != scenario:
        raise RolloutFormatError(
            f"{source}: expected the rollout of {scenario!r}, found that of {rollout.scenario!r}; delete the file"
        )
    return rollout


def _texts(error: ValidationError) -> str:
    faults = (
        (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()
    )
    return "; ".join(f"`{name}`: {message}" if name else message for name, message in faults)
