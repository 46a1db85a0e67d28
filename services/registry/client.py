"""Clients of a registry for operators: directly on its store, or through the registry process."""

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
from services.registry.announcement import announce
from services.registry.changes import PATHS, Change, action_name, apply_change, request_body
from services.registry.fleet import FleetView
from services.settings import Settings

FILES_PATH = "/v1/files"
TIMEOUT_SECONDS = 30.0
ANSWER_LIMIT_BYTES = 2**20
FLEET_LIMIT_BYTES = 2**25


class RegistryClient(Protocol):
    """A client that reads a registry and changes rollouts."""

    registry: AdapterRegistry

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now."""

    def fleet(self, scenario: str) -> FleetView | None:
        """Return the workers that report to the registry process; None if there is no process, or an older one.

        Raises:
            RegistryUnavailableError: the process does not answer.
        """


class DirectClient:
    """A client that writes to the store itself, and announces rollouts on Kafka if that is configured.

    Args:
        settings: the settings with brokers, signing keys and audit log.
        url: the address of the store.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self.registry, self._settings = AdapterRegistry(url), settings
        self._audit = AuditLog(settings.security.audit_log)

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now.

        Raises:
            RegistryError: the change breaks a rule, names a version that cannot be served, or the store failed.
            SigningKeyError: a public key of `signing.public_keys` cannot be read.
        """
        by = _user_name()
        with self._audit.call(action_name(change), by=by, scenario=scenario, asked=request_body(change)):
            rollout = apply_change(self.registry, scenario, change, by=by, verify=load_verifier(self._settings.signing))
        announce(self._settings, rollout)
        return rollout

    def fleet(self, scenario: str) -> FleetView | None:
        """Return None: workers report to registry processes only."""
        return None


class HttpClient:
    """A client of a registry process.

    Args:
        url: the address of the process.
        key: the API key to send; None if the process requires none.
        read_seconds: the deadline of one read as a whole.
    """

    def __init__(self, url: str, key: str | None, *, read_seconds: float = READ_SECONDS) -> None:
        self._url = url.rstrip("/").removesuffix(FILES_PATH)
        self.registry = AdapterRegistry(self._url + FILES_PATH, api_key=key, read_seconds=read_seconds)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def change(self, scenario: str, change: Change) -> Rollout:
        """Make a change and return the rollout that holds now.

        Raises:
            RegistryError: the process refused the change; the text has its reason.
            RegistryUnavailableError: the process does not answer.
        """
        url, body = f"{self._url}/v1/adapters/{scenario}/{PATHS[type(change)]}", request_body(change)
        try:
            with internal_client(headers=self._headers, timeout=TIMEOUT_SECONDS) as client:
                answer = bounded_request(
                    client,
                    "POST",
                    url,
                    seconds=TIMEOUT_SECONDS,
                    limit_bytes=ANSWER_LIMIT_BYTES,
                    json=body,
                )
            if answer.status_code == httpx.codes.OK:
                return Rollout.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise RegistryUnavailableError(f"POST {url}: {error or type(error).__name__}; is it a registry?") from error
        raise RegistryError(f"POST {url}: status {answer.status_code}: {_detail(answer)}")

    def fleet(self, scenario: str) -> FleetView | None:
        """Return the workers that report to the registry process; None if its release does not list them.

        Raises:
            RegistryUnavailableError: the process does not answer.
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


def open_client(settings: Settings) -> RegistryClient:
    """Return a client of the registry that `registry.url` names.

    Args:
        settings: the settings of the process.

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
        return answer.text[:200] or "no further detail"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user on this system, as in a container with a bare uid
        return f"uid {os.getuid()}"
