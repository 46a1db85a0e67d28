"""A registry as a person reaches it: by its own address, or through the registry process."""

import getpass
import os
from typing import Protocol

import httpx
from pydantic import ValidationError

from peft_adapters.errors import RegistryError, RegistryUnavailableError
from peft_adapters.registry.http_deadline import READ_SECONDS, bounded_request
from peft_adapters.registry.internal_http import internal_client
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.registry.signing import load_verifier
from services.audit import AuditLog
from services.registry.announcing import announce
from services.registry.changes import PATHS, Change, action_of, asked, make
from services.registry.fleet import FleetView
from services.settings import Settings

FILES_PATH = "/v1/files"
TIMEOUT_SECONDS = 30.0
ANSWER_LIMIT_BYTES = 2**20
FLEET_LIMIT_BYTES = 2**25


class RegistryClient(Protocol):
    """Reads a registry, and changes which version is served."""

    registry: AdapterRegistry

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now."""

    def fleet(self, scenario: str) -> FleetView | None:
        """The workers that report to the registry process; None where there is no process, or an older one.

        Raises:
            RegistryUnavailableError: The process does not answer.
        """


class DirectClient:
    """Writes to the store itself, and tells Kafka where there is one.

    Args:
        settings: which registry, which Kafka.
        url: of the store.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self.registry, self._settings = AdapterRegistry(url), settings
        self._audit = AuditLog(settings.security.audit_log)

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now.

        Raises:
            RegistryError: it is against the rules, names what is not there or cannot be served, or the store failed.
        SigningKeyError: a public key of `signing.public_keys` cannot be read.
        """
        by = _user()
        with self._audit.call(action_of(change), by=by, scenario=scenario, asked=asked(change)):
            rollout = make(self.registry, scenario, change, by=by, verify=load_verifier(self._settings.signing))
        announce(self._settings, rollout)
        return rollout

    def fleet(self, scenario: str) -> FleetView | None:
        """Return None: workers report to registry processes only."""
        return None


class HttpClient:
    """Asks a registry process.

    Args:
        url: of the process.
        key: is shown to it; None where it asks for none.
        read_seconds: deadline of one read as a whole.
    """

    def __init__(self, url: str, key: str | None, *, read_seconds: float = READ_SECONDS) -> None:
        self._url = url.rstrip("/").removesuffix(FILES_PATH)
        self.registry = AdapterRegistry(self._url + FILES_PATH, api_key=key, read_seconds=read_seconds)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now.

        Raises:
            RegistryError: the process refused, and says why.
            RegistryUnavailableError: it does not answer.
        """
        url = f"{self._url}/v1/adapters/{scenario}/{PATHS[type(change)]}"
        try:
            with internal_client(headers=self._headers, timeout=TIMEOUT_SECONDS) as client:
                answer = bounded_request(
                    client, "POST", url, seconds=TIMEOUT_SECONDS, limit_bytes=ANSWER_LIMIT_BYTES, json=asked(change)
                )
            if answer.status_code == httpx.codes.OK:
                return Rollout.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise RegistryUnavailableError(f"POST {url}: {error or type(error).__name__}; is it a registry?") from error
        raise RegistryError(f"POST {url}: status {answer.status_code}: {_detail(answer)}")

    def fleet(self, scenario: str) -> FleetView | None:
        """The workers that report to the registry process; None where it is of a release without that.

        Raises:
            RegistryUnavailableError: The process does not answer.
        """
        url = f"{self._url}/v1/adapters/{scenario}/workers"
        try:
            with internal_client(headers=self._headers, timeout=TIMEOUT_SECONDS) as client:
                answer = bounded_request(client, "GET", url, seconds=TIMEOUT_SECONDS, limit_bytes=FLEET_LIMIT_BYTES)
            if answer.status_code == httpx.codes.OK:
                return FleetView.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise RegistryUnavailableError(f"GET {url}: {error or type(error).__name__}; is it a registry?") from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        raise RegistryUnavailableError(f"GET {url}: status {answer.status_code}: {_detail(answer)}")


def access(settings: Settings) -> RegistryClient:
    """The registry that `registry.url` names.

    Args:
        settings: all of them.

    Raises:
        RegistryAddressError: no kind of store is known for the address.
    """
    url = settings.registry.url
    return (
        HttpClient(url, settings.registry.plain_key(), read_seconds=settings.registry.read_seconds)
        if url.startswith(("http://", "https://"))
        else DirectClient(settings, url)
    )


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200] or "no more is said"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user on this system, as in a container with a bare uid
        return f"uid {os.getuid()}"
