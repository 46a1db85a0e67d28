"""The rollout document of a scenario: its stable version, its canary and its shadow.

It is stored as `<scenario>/ROLLOUT.json` in the registry, and announced under the key `<scenario>/rollout`. A scenario
without a rollout follows the latest version. The methods return a new document of the next revision and write nothing.
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
TEXT_LIMIT = 500  # characters of `reason` and `changed_by`


class Canary(BaseModel):
    """A version that answers a share of the shoppers.

    Attributes:
        version: version of the canary; None follows the latest.
        percent: percentage of shoppers, above 0 and at most 100.
        auto_rollback: end the canary automatically once it is measured to be worse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version | None = None
    percent: float = Field(gt=0, le=100, allow_inf_nan=False)
    auto_rollback: bool = False


class Shadow(BaseModel):
    """A version that scores the same requests but never answers; None follows the latest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version | None = None


class Rollout(BaseModel):
    """The versions that the workers of a scenario serve.

    Attributes:
        scenario: name of the scenario.
        revision: number of the change; 0 before the first.
        stable_version: version that answers everyone outside the canary; None follows the latest.
        canary: version that answers some shoppers; needs a pinned stable version, so that the comparison is fixed.
        shadow: version that is compared and never answers.
        changed_at_ms: time of the change, epoch milliseconds.
        changed_by: author of the change, as the command or the API key names them.
        reason: reason of the change, as its author gave it.
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
        """The versions that the document names; parts that follow the latest name none."""
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
        """Pin the stable version and end the canary.

        Args:
            version: version that answers everyone.
            **by: the fields `changed_by` and `reason`.

        Raises:
            RolloutError: a field breaks its rule.
        """
        return self._next(stable_version=version, canary=None, shadow=self._shadow_beside(version), **by)

    def unpinned(self, **by: str) -> "Rollout":
        """Follow the latest version again; end the canary, and a shadow of the latest.

        Args:
            **by: the fields `changed_by` and `reason`.

        Raises:
            RolloutError: a field breaks its rule.
        """
        return self._next(stable_version=None, canary=None, shadow=self._shadow_beside(None), **by)

    def with_canary(self, canary: Canary | None, *, latest: int, **by: str) -> "Rollout":
        """Start, change or end the canary; the stable version is pinned to its current value when one starts.

        Args:
            canary: the new canary; None ends it.
            latest: the latest version, which is pinned if no version is.
            **by: the fields `changed_by` and `reason`.

        Raises:
            RolloutError: the canary is the stable version, or a field breaks its rule.
        """
        stable = self.stable_version if canary is None else self.stable_or(latest)
        return self._next(stable_version=stable, canary=canary, **by)

    def with_shadow(self, shadow: Shadow | None, *, latest: int, **by: str) -> "Rollout":
        """Start, change or end the shadow; a shadow of the latest pins the stable version to its current value.

        Args:
            shadow: the new shadow; None ends it.
            latest: the latest version, which is pinned if no version is.
            **by: the fields `changed_by` and `reason`.

        Raises:
            RolloutError: the shadow is the stable version, or a field breaks its rule.
        """
        pins_stable = shadow is not None and shadow.version is None
        stable = self.stable_or(latest) if pins_stable else self.stable_version
        return self._next(stable_version=stable, shadow=shadow, **by)

    def promoted(self, *, latest: int, **by: str) -> "Rollout":
        """Pin the canary's version as the stable one.

        Args:
            latest: the latest version, which is pinned if the canary follows it.
            **by: the fields `changed_by` and `reason`.

        Raises:
            RolloutError: there is no canary, or a field breaks its rule.
        """
        if self.canary is None:
            raise RolloutError(f"scenario {self.scenario!r} has no canary to promote; start one, or pin a version")
        return self.pinned(self.canary.version or latest, **by)

    def stable_or(self, latest: int) -> int:
        """Return the stable version, or `latest` if none is pinned."""
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
            raise RolloutError(f"scenario {self.scenario!r}: {_messages(error)}") from None


def rollout_key(scenario: str) -> bytes:
    """Return the key of a scenario's rollout on the topic `adapters`.

    >>> rollout_key("home")
    b'home/rollout'
    """
    return f"{check_scenario(scenario)}{KEY_SUFFIX}".encode()


def rollout_bytes(rollout: Rollout) -> bytes:
    """Serialise a rollout, for the registry, the topic and HTTP."""
    return rollout.model_dump_json(indent=1).encode()


def rollout_etag(rollout: Rollout) -> str:
    """Return the HTTP entity tag of a rollout: the SHA-256 of its bytes."""
    return hashlib.sha256(rollout_bytes(rollout)).hexdigest()


def parse_rollout(data: bytes, *, scenario: str, source: str) -> Rollout:
    """Parse and check a rollout.

    Args:
        data: the bytes of the document.
        scenario: the scenario that it must belong to.
        source: name of the data in error messages.

    Raises:
        RolloutFormatError: the document is invalid, or belongs to another scenario.
    """
    try:
        rollout = Rollout.model_validate_json(data)
    except ValidationError as error:
        raise RolloutFormatError(
            f"{source}: expected a rollout, found one that breaks its rules: {_messages(error)}; delete the file"
        ) from error
    if rollout.scenario != scenario:
        raise RolloutFormatError(
            f"{source}: expected the rollout of {scenario!r}, found that of {rollout.scenario!r}; delete the file"
        )
    return rollout


def _messages(error: ValidationError) -> str:
    faults = (
        (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()
    )
    return "; ".join(f"`{name}`: {message}" if name else message for name, message in faults)
