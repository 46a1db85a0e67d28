"""Changes of a rollout, as requested by command or over HTTP, and how each is made."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

from peft_adapters.errors import (
    BundleError,
    RolloutConflictError,
    RolloutError,
    VersionNotFoundError,
    VersionNotKeptError,
)
from peft_adapters.registry.manifest import MAX_VERSION
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import TEXT_LIMIT, Canary, Rollout, Shadow
from peft_adapters.registry.signing import Verifier
from services.moments import MOMENT_OR_AGO, moment_ms
from services.registry.chains import verify_chain
from services.web.json_types import NUMBER_ONLY, Flag

VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION), NUMBER_ONLY]


class Change(BaseModel):
    """Base of all changes.

    Attributes:
        reason: the caller's reason, which is kept in the rollout.
        if_revision: the revision that the rollout must still have; None accepts any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(default="", max_length=TEXT_LIMIT)
    if_revision: Annotated[int, Field(ge=0, le=MAX_VERSION), NUMBER_ONLY] | None = None

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change.

        Args:
            now: the rollout before the change.
            published: all published versions, oldest first; at least one.
            by: the name of the caller.

        Raises:
            RolloutError: the change would break the rules of a rollout.
        """
        raise NotImplementedError

    def _by(self, by: str) -> dict[str, str]:
        return {"changed_by": by[:TEXT_LIMIT], "reason": self.reason}


class Pin(Change):
    """Serve one version to all shoppers."""

    version: VersionNumber

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        return now.pinned(self.version, **self._by(by))


class Unpin(Change):
    """Serve the latest version again."""

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        return now.unpinned(**self._by(by))


class Rollback(Change):
    """Serve an earlier version to all shoppers.

    Without `version` and `to`, it is the stable version if a canary runs, else the version before the served one.

    Attributes:
        version: the version to go back to.
        to: the time to go back to: RFC 3339, or an age such as `2h`. It chooses the newest version that was published
            at or before that time and is still kept.
    """

    version: VersionNumber | None = None
    to: Annotated[str, Field(pattern=MOMENT_OR_AGO, examples=["2h", "2026-01-31T09:00:00Z"])] | None = None

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change.

        Raises:
            RolloutError: there is no earlier version, or the named one is not earlier.
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
    """Serve another version, or always the latest, to some shoppers; the stable version is pinned."""

    version: VersionNumber | None = None
    percent: Annotated[float, Strict(), Field(gt=0, le=100, allow_inf_nan=False)]
    auto_rollback: Flag = False

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        canary = Canary(version=self.version, percent=self.percent, auto_rollback=self.auto_rollback)
        return now.with_canary(canary, latest=published[-1], **self._by(by))


class EndCanary(Change):
    """Serve the stable version to all shoppers."""

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        return now.with_canary(None, latest=published[-1], **self._by(by))


class StartShadow(Change):
    """Score requests with another version, or always the latest, as well; its scores are never answered."""

    version: VersionNumber | None = None

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        return now.with_shadow(Shadow(version=self.version), latest=published[-1], **self._by(by))


class EndShadow(Change):
    """End the shadow version."""

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
        return now.with_shadow(None, latest=published[-1], **self._by(by))


class Promote(Change):
    """Serve the canary's version to all shoppers, pinned."""

    def apply(self, now: Rollout, published: Sequence[int], *, by: str) -> Rollout:
        """Return the rollout after the change."""
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


def action_name(change: Change) -> str:
    """Return the name of a change in the audit log."""
    return f"adapters.{PATHS[type(change)]}"


def request_body(change: Change) -> dict[str, object]:
    """Return the fields of a change that are set."""
    return change.model_dump(exclude_none=True)


def apply_change(
    registry: AdapterRegistry, scenario: str, change: Change, *, by: str, verify: Verifier | None = None
) -> Rollout:
    """Make a change and return the rollout that holds now.

    Versions that are to be served are verified first, with their chains; a refused change writes nothing. The written
    rollout is read back.

    Args:
        registry: the registry, open for writing.
        scenario: the scenario of the rollout.
        change: the requested change.
        by: the name of the caller.
        verify: checks the signatures of versions that are to be served; None checks none.

    Raises:
        RolloutError: the change would break the rules of a rollout (`RolloutConflictError`: it was changed meanwhile;
            `ChainRefusedError`: a version cannot be served).
        VersionNotFoundError: a named version is not in the registry.
        RegistryError: the registry is read-only, or cannot be used.
    """
    now = registry.rollout(scenario)
    if change.if_revision is not None and change.if_revision != now.revision:
        raise RolloutConflictError(
            f"`if_revision` must be that of the rollout of {scenario!r}, {now.revision}, got {change.if_revision}; "
            "check what was changed, then try again"
        )
    published = registry.versions(scenario)
    if not published:
        raise VersionNotKeptError(
            f"nothing has been published for scenario {scenario!r} yet; nothing can be rolled out"
        )
    if isinstance(change, Rollback) and change.to is not None:
        below = _newest_served(now, published[-1])
        version = _version_at(registry, scenario, published, _past_ms(change), below=below)
        change = Rollback(version=version, reason=change.reason)
    rollout = change.apply(now, published, by=by)
    for version in dict.fromkeys(_newly_served(change, now, rollout, latest=published[-1])):
        verify_chain(registry, scenario, version, verify)
    registry.set_rollout(rollout)
    return rollout


def _newest_served(now: Rollout, latest: int) -> int:
    served = [now.stable_or(latest)]
    if now.canary is not None:
        served.append(now.canary.version or latest)
    return max(served)


def _newly_served(change: Change, now: Rollout, after: Rollout, *, latest: int) -> Iterator[int]:
    """Yield the versions that a change puts into arms; ending a canary or shadow puts none."""
    stable = after.stable_version
    if stable is not None and (stable != now.stable_version or isinstance(change, Pin)):
        yield stable
    if isinstance(change, StartCanary):
        yield change.version or latest
    if isinstance(change, StartShadow):
        yield change.version or latest


def _past_ms(change: Rollback) -> int:
    """Return the time to go back to, epoch milliseconds.

    Raises:
        RolloutError: the text is no time, the time lies in the future, or a version is named as well.
    """
    if change.version is not None:
        raise RolloutError(f"a rollback takes `version` or `to`, got both: {change.version} and {change.to!r}")
    try:
        at_ms = moment_ms(str(change.to))
    except ValueError as error:
        raise RolloutError(f"`to`: {error}") from None
    if at_ms > time.time_ns() // 1_000_000:
        raise RolloutError(f"`to` must be a time in the past, got {change.to!r}")
    return at_ms


def _version_at(registry: AdapterRegistry, scenario: str, published: Sequence[int], at_ms: int, *, below: int) -> int:
    """Find the newest kept version that was published at or before a time.

    Args:
        registry: the registry that holds the versions.
        scenario: the scenario of the versions.
        published: all published versions, oldest first.
        at_ms: the time, epoch milliseconds.
        below: the newest version that is served.

    Raises:
        RolloutError: no version is kept that far back, or it is not below the version that is served.
        RegistryUnavailableError: the store failed.
    """
    candidate = None
    for version in reversed(published):
        with suppress(BundleError, VersionNotFoundError):  # damaged, or deleted meanwhile
            candidate = registry.manifest(scenario, version)
            if candidate.published_at_ms <= at_ms:
                break
    if candidate is None or candidate.published_at_ms > at_ms:
        kept = (
            "no version can be read"
            if candidate is None
            else (
                f"the oldest that is kept is version {candidate.version}, published at "
                f"{_moment(candidate.published_at_ms)}"
            )
        )
        raise RolloutError(
            f"no version that was published at or before {_moment(at_ms)} is kept; {kept}; name a later time, or a "
            "version"
        )
    if candidate.version >= below:
        raise RolloutError(
            f"version {candidate.version}, published at {_moment(candidate.published_at_ms)}, is the newest up to "
            f"{_moment(at_ms)}, and a rollback must go below version {below}, which is served; name an earlier time or "
            "a version"
        )
    return candidate.version


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
