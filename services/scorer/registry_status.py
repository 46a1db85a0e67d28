"""Causes for which a scorer cannot read its registry."""

import threading
from typing import NamedTuple

from peft_adapters.errors import BundleError, RolloutFormatError, VersionNotFoundError

REGISTRY, ADAPTER = "registry", "adapter"


class Cause(NamedTuple):
    """The cause of a failed read.

    Attributes:
        name: `registry` if the registry itself is at fault, `adapter` if a version in it is.
        text: the cause, for a person.
    """

    name: str
    text: str


class RegistryStatus:
    """Holds the cause of the newest failure by scenario and part, until the part is read again.

    Several threads read the same registry; each reports its successes and failures.
    """

    def __init__(self) -> None:
        self._causes: dict[tuple[str, str], Cause] = {}
        self._lock = threading.Lock()

    def failed(self, scenario: str, part: str, cause: Cause) -> bool:
        """Record a failure. Returns True if the part could be read before.

        Args:
            scenario: the scenario that was read.
            part: the part that was read: `latest`, `rollout` or `bundle`.
            cause: the cause of the failure.
        """
        with self._lock:
            is_new = (scenario, part) not in self._causes
            self._causes[scenario, part] = cause
            return is_new

    def answered(self, scenario: str, part: str) -> None:
        """Record that a part was read."""
        with self._lock:
            self._causes.pop((scenario, part), None)

    def bundle_read(self, scenario: str) -> None:
        """Record that a version was read, which proves that the registry answers and is not empty."""
        with self._lock:
            cause = self._causes.get((scenario, "latest"))
            if cause is not None and cause.name == REGISTRY:
                del self._causes[scenario, "latest"]

    def drop(self, scenario: str) -> None:
        """Forget a scenario."""
        with self._lock:
            for key in [key for key in self._causes if key[0] == scenario]:
                del self._causes[key]

    def causes(self, scenario: str, name: str) -> list[str]:
        """Return the distinct causes of one name for a scenario."""
        with self._lock:
            texts = [cause.text for (of, _), cause in self._causes.items() if of == scenario and cause.name == name]
        return list(dict.fromkeys(texts))


def cause_of(error: Exception, scenario: str) -> Cause:
    """Return the true cause of a failed read.

    >>> cause_of(VersionNotFoundError("no version 3"), "home").text
    "the newest version of 'home' is refused: no version 3"
    """
    if isinstance(error, BundleError | VersionNotFoundError):
        return Cause(ADAPTER, f"the newest version of {scenario!r} is refused: {error}")
    if isinstance(error, RolloutFormatError):
        return Cause(REGISTRY, f"the rollout of {scenario!r} cannot be read: {error}")
    return Cause(REGISTRY, f"the registry does not answer: {error}")
