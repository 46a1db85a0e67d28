"""Ownership of a scenario: the updater that claimed it last may publish to it, and earlier ones are fenced."""

import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from peft_adapters.errors import AlreadyRunningError, BundleFormatError, FencedError, RegistryUnavailableError
from peft_adapters.registry.manifest import Manifest, check_scenario
from peft_adapters.registry.store_access import StoreAccess

OWNER_NAME = "OWNER"
OWNER_LIMIT_BYTES = 1_024
CLAIM_SECONDS = 30.0  # after its last publication, a scenario cannot be claimed by another lineage for this long


class Owner(BaseModel):
    """The updater that may publish to a scenario.

    Attributes:
        lineage: identity of the updater's checkpoints, the same for every start from them.
        epoch: number of the start; it only rises within a lineage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lineage: str
    epoch: int


class OwnerFile:
    """The file `<scenario>/OWNER` of a registry.

    Args:
        access: access to the registry's store.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access

    def claim(self, scenario: str, owner: Owner, *, latest: Callable[[str], Manifest | None]) -> None:
        """Make `owner` the owner of a scenario.

        Args:
            scenario: the scenario to claim.
            owner: the updater that claims it.
            latest: returns the manifest of a scenario's latest version.

        Raises:
            AlreadyRunningError: an updater with other checkpoints has published to it within `CLAIM_SECONDS`.
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        current, newest = self.read(scenario), latest(scenario)
        if current is not None and current.lineage != owner.lineage and newest is not None:
            ago_seconds = time.time() - newest.published_at_ms / 1_000
            if ago_seconds < CLAIM_SECONDS:
                raise AlreadyRunningError(
                    f"scenario {scenario!r} in {self._access.url} got version {newest.version} {ago_seconds:.0f} s ago "
                    "from an updater with other checkpoints; stop that one, or give this one another scenario or "
                    "registry"
                )
        data = owner.model_dump_json().encode()
        self._access.write(f"{scenario}/{OWNER_NAME}", data, action=f"claim {scenario!r}")

    def require(self, scenario: str, owner: Owner | None) -> None:
        """Check that `owner` still owns a scenario; None passes.

        Raises:
            FencedError: another updater has claimed the scenario.
            RegistryUnavailableError: the store failed, or has lost the owner.
        """
        if owner is None:
            return
        current = self.read(scenario)
        if current is None:  # an empty mount point looks like this
            raise RegistryUnavailableError(
                f"registry {self._access.url} holds no owner of {scenario!r} any more, epoch {owner.epoch} had claimed "
                "it; bring it back, or start this updater again to begin a new chain"
            )
        if current != owner:
            raise FencedError(
                f"scenario {scenario!r} in {self._access.url}: expected epoch {owner.epoch} as its owner, found "
                f"{current}; another updater publishes to it now, so this one ends without publishing anything more"
            )

    def read(self, scenario: str) -> Owner | None:
        """Return the owner of a scenario; None before the first claim.

        Raises:
            ScenarioNameError: the name is not valid.
            BundleFormatError: the file does not hold an owner.
            RegistryUnavailableError: the store failed.
        """
        path = f"{check_scenario(scenario)}/{OWNER_NAME}"
        data = self._access.read(path, limit_bytes=OWNER_LIMIT_BYTES)
        if data is None:
            return None
        try:
            return Owner.model_validate_json(data)
        except ValidationError as error:
            raise BundleFormatError(
                f"{self._access.url}/{path}: expected an owner, found {error.errors()[0]['msg']}; delete it"
            ) from error
