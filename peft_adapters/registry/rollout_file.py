"""The file `<scenario>/ROLLOUT.json` of a registry, changed under optimistic concurrency control."""

from collections.abc import Callable

import structlog

from peft_adapters.errors import BundleFormatError, RolloutConflictError, RolloutFormatError
from peft_adapters.registry.manifest import check_scenario
from peft_adapters.registry.rollout import ROLLOUT_LIMIT_BYTES, ROLLOUT_NAME, Rollout, parse_rollout, rollout_bytes
from peft_adapters.registry.store_access import StoreAccess

log = structlog.get_logger(__name__)


class RolloutFile:
    """Reads and replaces the rollout document of a scenario.

    Args:
        access: access to the registry's store.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access

    def read(self, scenario: str) -> Rollout:
        """Return the rollout of a scenario; if none is stored, one of revision 0 that follows the latest version.

        Raises:
            ScenarioNameError: the name is not valid.
            RolloutFormatError: the stored document is not a rollout.
            RegistryUnavailableError: the store failed.
        """
        path = f"{check_scenario(scenario)}/{ROLLOUT_NAME}"
        try:
            data = self._access.read(path, limit_bytes=ROLLOUT_LIMIT_BYTES)
        except BundleFormatError as error:  # a registry process answers so if it cannot use the file
            raise RolloutFormatError(str(error)) from error
        if data is None:
            return Rollout(scenario=scenario)
        return parse_rollout(data, scenario=scenario, source=f"{self._access.url}/{path}")

    def write(self, rollout: Rollout, *, check_version: Callable[[str, int], object]) -> None:
        """Replace the rollout of a scenario by its next revision.

        The revision is checked just before the write and the document is read back just after it, so that of two
        concurrent writers one gets an error even on stores without conditional writes.

        Args:
            rollout: the new document, one revision after the stored one.
            check_version: raises for a version that cannot be served; called for each newly named version.

        Raises:
            RolloutConflictError: another process has changed the rollout meanwhile.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        path, data = f"{rollout.scenario}/{ROLLOUT_NAME}", rollout_bytes(rollout)
        current = self.read(rollout.scenario)
        for version in rollout.versions - current.versions:
            check_version(rollout.scenario, version)
        if current.revision != rollout.revision - 1:
            raise _conflict(rollout, current)
        self._access.write(path, data, action=f"write {path}")
        written = self.read(rollout.scenario)
        if written != rollout:
            raise _conflict(rollout, written)
        log.info("rollout_changed", **rollout.model_dump())


def _conflict(rollout: Rollout, current: Rollout) -> RolloutConflictError:
    return RolloutConflictError(
        f"the rollout of {rollout.scenario!r}: expected revision {rollout.revision - 1} before the change, found "
        f"{current.revision} by {current.changed_by or 'nobody'}; look at it, then make the change again"
    )
