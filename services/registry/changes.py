"""Changes of a rollout as people ask for them, by command or over HTTP, and how each is made."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

from peft_adapters.errors import RolloutConflictError, RolloutError, VersionNotFoundError
from peft_adapters.manifest import MAX_VERSION
from peft_adapters.registry import AdapterRegistry
from peft_adapters.rollout import TEXT_LIMIT, Canary, Rollout, Shadow
from services.json_types import NUMBER_ONLY, Flag

VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION), NUMBER_ONLY]


class Change(BaseModel):
    """What every change takes.

    Attributes:
        reason: in the words of who asks; it stays in the rollout.
        if_revision: the change is made only if the rollout is still of this revision; None makes it in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(default="", max_length=TEXT_LIMIT)
    if_revision: Annotated[int, Field(ge=0, le=MAX_VERSION), NUMBER_ONLY] | None = None

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change.

        Args:
            now: the rollout before it.
            published: all published versions, oldest first; at least one.
            by: who asks.

        Raises:
            RolloutError: it would break the rules of a rollout.
        """
        raise NotImplementedError

    def _by(self, by: str) -> dict[str, str]:
        return {"changed_by": by[:TEXT_LIMIT], "reason": self.reason}


class Pin(Change):
    """Answer all from one version."""

    version: VersionNumber

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.pinned(self.version, **self._by(by))


class Unpin(Change):
    """Follow the latest version again."""

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.unpinned(**self._by(by))


class Rollback(Change):
    """Answer all from an earlier version: the one named, else the stable one if a canary runs, else the one before."""

    version: VersionNumber | None = None

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change.

        Raises:
            RolloutError: there is no earlier version, or the one named is none.
        """
        stable, newest = now.stable_or(published[-1]), _newest_served(now, published[-1])
        earlier = [version for version in published if version < newest]
        if self.version is None and now.canary is not None:
            return now.pinned(stable, **self._by(by))
        if self.version is not None and self.version >= newest:
            raise RolloutError(
                f"a rollback's `version` must be below {newest}, which is served, got {self.version}; pin it"
            )
        if not earlier:
            raise RolloutError(f"nothing earlier than version {newest} is kept; publish another version, or pin one")
        return now.pinned(self.version or earlier[-1], **self._by(by))


class StartCanary(Change):
    """Answer some shoppers from another version, or from the latest as it comes; the stable one is held."""

    version: VersionNumber | None = None
    percent: Annotated[float, Strict(), Field(gt=0, le=100, allow_inf_nan=False)]
    auto_rollback: Flag = False

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        canary = Canary(version=self.version, percent=self.percent, auto_rollback=self.auto_rollback)
        return now.with_canary(canary, latest=published[-1], **self._by(by))


class EndCanary(Change):
    """Answer all from the stable version."""

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.with_canary(None, latest=published[-1], **self._by(by))


class StartShadow(Change):
    """Have another version, or the latest as it comes, score too without ever answering."""

    version: VersionNumber | None = None

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.with_shadow(Shadow(version=self.version), latest=published[-1], **self._by(by))


class EndShadow(Change):
    """Have no version score beside the one that answers."""

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.with_shadow(None, latest=published[-1], **self._by(by))


class Promote(Change):
    """Answer all from the canary's version, pinned."""

    def made(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """The rollout after the change."""
        return now.promoted(latest=published[-1], **self._by(by))


# Under /v1/adapters/{scenario}/.
PATHS: dict[type[Change], str] = {
    Pin: "pin",
    Unpin: "unpin",
    Rollback: "rollback",
    StartCanary: "canary",
    EndCanary: "canary/end",
    StartShadow: "shadow",
    EndShadow: "shadow/end",
    Promote: "promote",
}


def action_of(change: Change) -> str:
    """What the audit log calls a change."""
    return f"adapters.{PATHS[type(change)]}"


def asked(change: Change) -> dict[str, object]:
    """What was asked for, without what was left open."""
    return change.model_dump(exclude_none=True)


def make(registry: AdapterRegistry, scenario: str, change: Change, *, by: str) -> Rollout:
    """Make a change and return the rollout that holds now.

    Args:
        registry: open for writing.
        scenario: whose rollout.
        change: which.
        by: who asks.

    Raises:
        RolloutError: it would break the rules of a rollout (`RolloutConflictError`: another was quicker).
        VersionNotFoundError: a version it names, or a link of its chain, is not there.
        RegistryError: the registry is read-only, or cannot be used.
    """
    now = registry.rollout(scenario)
    if change.if_revision is not None and change.if_revision != now.revision:
        raise RolloutConflictError(
            f"`if_revision` must be that of the rollout of {scenario!r}, {now.revision}, got {change.if_revision}; "
            "look at what was changed, then ask again"
        )
    published = registry.versions(scenario)
    if not published:
        raise VersionNotFoundError(
            f"nothing has been published for scenario {scenario!r} yet; nothing can be rolled out"
        )
    rollout = change.made(now, published, by=by)
    registry.set_rollout(rollout)
    return rollout


def _newest_served(now: Rollout, latest: int) -> int:
    served = [now.stable_or(latest)]
    if now.canary is not None:
        served.append(now.canary.version or latest)
    return max(served)
