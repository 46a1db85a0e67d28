"""What keeps a scorer from reading its registry at present, and why."""

import threading
from typing import NamedTuple

from peft_adapters.errors import BundleError, RolloutFormatError, VersionNotFoundError

REGISTRY, ADAPTER = "registry", "adapter"


class Cause(NamedTuple):
    """Why something could not be read.

    Attributes:
        name: `registry` where the registry itself is at fault, `adapter` where a version in it is.
        text: The cause, for a person.
    """

    name: str
    text: str


class RegistryStatus:
    """Holds the cause of the newest failure by scenario and by what was read, until that is read again.

    Several threads read the same registry: each reports what it read, and whether that failed.
    """

    def __init__(self) -> None:
        self._causes: dict[tuple[str, str], Cause] = {}
        self._lock = threading.Lock()

    def failed(self, scenario: str, part: str, cause: Cause) -> bool:
        """Record a failure; returns whether this part could be read before.

        Args:
            scenario: Of which ranking.
            part: What was read: `latest`, `rollout` or `bundle`.
            cause: Why it could not be.
        """
        with self._lock:
            is_new = (scenario, part) not in self._causes
            self._causes[scenario, part] = cause
            return is_new

    def answered(self, scenario: str, part: str) -> None:
        """Record that a part was read."""
        with self._lock:
            self._causes.pop((scenario, part), None)

    def drop(self, scenario: str) -> None:
        """Forget a scenario."""
        with self._lock:
            for key in [key for key in self._causes if key[0] == scenario]:
                del self._causes[key]

    def causes(self, scenario: str, name: str) -> list[str]:
        """The distinct causes for a scenario, of one name."""
        with self._lock:
            found = [cause.text for (own, _), cause in self._causes.items() if own == scenario and cause.name == name]
        return list(dict.fromkeys(found))


def cause_of(error: Exception, scenario: str) -> Cause:
    """Name the true cause of a failed read.

    >>> cause_of(VersionNotFoundError("no version 3"), "home").text
    "the newest version of 'home' is refused: no version 3"
    """
    if isinstance(error, BundleError | VersionNotFoundError):
        return Cause(ADAPTER, f"the newest version of {scenario!r} is refused: {error}")
    if isinstance(error, RolloutFormatError):
        return Cause(REGISTRY, f"the rollout of {scenario!r} cannot be read: {error}")
    return Cause(REGISTRY, f"the registry does not answer: {error}")
