"""The file `<scenario>/LATEST`: the number of a scenario's newest version."""

from collections.abc import Callable, Sequence

from peft_adapters.errors import LatestFormatError, VersionNotKeptError
from peft_adapters.registry.manifest import MAX_VERSION, check_scenario
from peft_adapters.registry.store_access import StoreAccess

LATEST_NAME = "LATEST"
LATEST_LIMIT_BYTES = 32


class LatestPointer:
    """Reads and advances `LATEST`, and explains what is wrong with it.

    Args:
        access: access to the registry's store.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access

    def read(self, scenario: str) -> int | None:
        """Return the number of the latest version; None if nothing has been published.

        Raises:
            ScenarioNameError: the name is not valid.
            LatestFormatError: the file holds no version number.
            RegistryUnavailableError: the store failed.
        """
        path = f"{check_scenario(scenario)}/{LATEST_NAME}"
        data = self._access.read(path, limit_bytes=LATEST_LIMIT_BYTES)
        if data is None:
            return None
        if not data.strip().isdigit() or not 1 <= int(data) <= MAX_VERSION:
            raise LatestFormatError(f"{path}: expected a version number, found {data!r}; write one there")
        return int(data)

    def advance(self, scenario: str, version: int) -> None:
        """Write the number of the latest version.

        Raises:
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        self._access.write(
            f"{scenario}/{LATEST_NAME}",
            f"{version}\n".encode(),
            action=f"advance {LATEST_NAME} of {scenario!r} to {version}",
        )

    def explain_absence(self, scenario: str, list_versions: Callable[[str], Sequence[int]]) -> str:
        """Explain in one sentence why `LATEST` does not exist: the registry is missing, damaged or empty.

        Args:
            scenario: the scenario without a latest version.
            list_versions: returns all published versions of a scenario, oldest first.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        if (root := self._access.store.missing_root()) is not None:
            return (
                f"the registry is missing: the directory {root} does not exist; check the address and the mount, or "
                "start an updater that publishes to it"
            )
        if versions := list_versions(scenario):
            return (
                f"the registry is damaged: {self._access.url} holds {len(versions)} versions of scenario {scenario!r} "
                f"and no {LATEST_NAME}; write the number of the newest, {versions[-1]}, into {scenario}/{LATEST_NAME}"
            )
        return (
            f"the registry is empty: {self._access.url} holds no version of scenario {scenario!r}; check that an "
            "updater publishes this scenario to it"
        )


def dangling_error(scenario: str, version: int, versions: Sequence[int]) -> VersionNotKeptError:
    """Return the error for a `LATEST` that names a version the registry does not hold.

    Args:
        scenario: the scenario whose pointer dangles.
        version: the version that `LATEST` names.
        versions: all its published versions, oldest first.
    """
    remedy = f", or write the number of the newest, {versions[-1]}, into {scenario}/{LATEST_NAME}" if versions else ""
    return VersionNotKeptError(
        f"{scenario}/{LATEST_NAME} names version {version}, which the registry does not hold; put that version "
        f"back{remedy}"
    )
