"""Changes of a rollout as people ask for them, by command or over HTTP, and how each is made."""

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
    """Answer all from an earlier version.

    Without `version` and `to` it is the stable version if a canary runs, else the one before that which is served.

    Attributes:
        version: The version to go back to.
        to: The time to go back to: RFC 3339, or how long ago, such as `2h`. It chooses the newest version that was
            published at or before then and is still kept.
    """

    version: VersionNumber | None = None
    to: Annotated[str, Field(pattern=MOMENT_OR_AGO, examples=["2h", "2026-01-31T09:00:00Z"])] | None = None

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


def make(
    registry: AdapterRegistry, scenario: str, change: Change, *, by: str, verify: Verifier | None = None
) -> Rollout:
    """Make a change and return the rollout that holds now.

    Versions that are to be served are verified first, with all that they build on; a refused change writes nothing.
    What was written is read back.

    Args:
        registry: open for writing.
        scenario: whose rollout.
        change: which.
        by: who asks.
        verify: checks the signatures of versions that are to be served; None checks none.

    Raises:
        RolloutError: it would break the rules of a rollout (`RolloutConflictError`: another was quicker;
            `ChainRefusedError`: a version cannot be served).
        VersionNotFoundError: a version it names is not there.
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
        raise VersionNotKeptError(
            f"nothing has been published for scenario {scenario!r} yet; nothing can be rolled out"
        )
    if isinstance(change, Rollback) and change.to is not None:
        below = _newest_served(now, published[-1])
        version = _version_at(registry, scenario, published, _past_ms(change), below=below)
        change = Rollback(version=version, reason=change.reason)
    rollout = change.made(now, published, by=by)
    for version in dict.fromkeys(_brought(change, now, rollout, latest=published[-1])):
        verify_chain(registry, scenario, version, verify)
    registry.set_rollout(rollout)
    return rollout


def _newest_served(now: Rollout, latest: int) -> int:
    served = [now.stable_or(latest)]
    if now.canary is not None:
        served.append(now.canary.version or latest)
    return max(served)


def _brought(change: Change, now: Rollout, after: Rollout, *, latest: int) -> Iterator[int]:
    """The versions that a change puts into arms; ending a canary or shadow puts none."""
    stable = after.stable_version
    if stable is not None and (stable != now.stable_version or isinstance(change, Pin)):
        yield stable
    if isinstance(change, StartCanary):
        yield change.version or latest
    if isinstance(change, StartShadow):
        yield change.version or latest


def _past_ms(change: Rollback) -> int:
    """The time to go back to, in epoch milliseconds.

    Raises:
        RolloutError: It is no time, lies ahead, or a version is named, too.
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
        registry: Where the versions are.
        scenario: Of which ranking.
        published: All published versions, oldest first.
        at_ms: The time, epoch milliseconds.
        below: The newest version that is served.

    Raises:
        RolloutError: None is kept that far back, or the one found is not below the version that is served.
        RegistryUnavailableError: The store failed.
    """
    oldest = None
    for version in reversed(published):
        with suppress(BundleError, VersionNotFoundError):  # damaged, or deleted meanwhile
            oldest = registry.manifest(scenario, version)
            if oldest.published_at_ms <= at_ms:
                break
    if oldest is None or oldest.published_at_ms > at_ms:
        kept = (
            "no version can be read"
            if oldest is None
            else (
                f"the oldest that is kept is version {oldest.version}, published at {_moment(oldest.published_at_ms)}"
            )
        )
        raise RolloutError(
            f"no version that was published at or before {_moment(at_ms)} is kept; {kept}; name a later time, or a "
            "version"
        )
    if oldest.version >= below:
        raise RolloutError(
            f"version {oldest.version}, published at {_moment(oldest.published_at_ms)}, is the newest up to "
            f"{_moment(at_ms)}, and a rollback must go below version {below}, which is served; name an earlier time or "
            "a version"
        )
    return oldest.version


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
