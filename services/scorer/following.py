"""Follows a registry without Kafka: by long polls of a registry process, or by polling the files of other stores.

It also runs beside the topic, because a rollback must reach a worker whose Kafka is gone.
"""

import threading
import time
from collections.abc import Callable

import httpx
import structlog

from peft_adapters.errors import (
    BundleFormatError,
    HeadwaterModelError,
    RegistryUnavailableError,
    VersionNotFoundError,
)
from peft_adapters.registry.http_deadline import bounded_request
from peft_adapters.registry.internal_http import error_detail, internal_client
from peft_adapters.registry.manifest import MANIFEST_LIMIT_BYTES, parse_manifest
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import parse_rollout
from services.scorer.announcements import Announcements
from services.scorer.bundles import FILES_PATH
from services.scorer.registry_status import REGISTRY, Cause, cause_of
from streams.connection import backoff_seconds

WAIT_SECONDS = 20.0  # of one long poll; the registry allows 30 s
NO_ANSWER_SECONDS = 5.0  # after that, the registry counts as away
NOTHING_PUBLISHED = "nothing has been published"  # the wording of the registry process
REGISTRY_IS = "the registry is "  # followed by `missing` or `damaged`; likewise
GRACE_SECONDS = 2.0  # for the topic to announce a version first

log = structlog.get_logger(__name__)


class RegistryFollower:
    """Reads rollouts and latest versions from a registry for the lifetime of the process.

    Args:
        registry: the registry to follow.
        announcements: receives what is found, and lists the scenarios to follow.
        poll_seconds: the time between two reads of a store without long polls.
        api_key: the key for a registry process.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        announcements: Announcements,
        *,
        poll_seconds: float,
        api_key: str | None = None,
    ) -> None:
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._registry, self._announcements, self._poll_seconds = registry, announcements, poll_seconds
        self._status = announcements.status
        self._over_http = registry.url.startswith(("http://", "https://"))
        self._stop = threading.Event()
        self._threads: dict[tuple[str, str], threading.Thread] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # latest version, and when it was found, monotonic seconds

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Follow scenarios until stopped."""
        while not self._stop.wait(self._poll_seconds):
            for scenario in self._announcements.followed():
                if self._over_http:
                    for part, poll in (("rollout", self._poll_rollout), ("latest", self._poll_latest)):
                        self._keep_polling(scenario, part, poll)
                else:
                    self._read_store(scenario)

    def _read_store(self, scenario: str) -> None:
        """Read the files of a store once."""
        part = "rollout"
        try:
            self._announcements.update_rollout(self._registry.rollout(scenario))
            self._status.answered(scenario, part)
            part = "latest"
            latest = self._registry.latest(scenario)
            absence = self._registry.explain_absence(scenario) if latest is None else None
        except HeadwaterModelError as error:
            self._failed(scenario, part, cause_of(error, scenario))
            return
        if latest is None:
            self._failed(scenario, part, Cause(REGISTRY, str(absence)))
            return
        self._status.answered(scenario, part)
        version, since = self._seen.get(scenario, (0, 0.0))
        if version != latest.version:
            self._seen[scenario] = (latest.version, time.monotonic())
        elif time.monotonic() - since > GRACE_SECONDS:
            self._announcements.update_latest(latest, only_newer=True)

    def _failed(self, scenario: str, part: str, cause: Cause) -> None:
        if scenario not in self._announcements.followed():  # dropped meanwhile
            return
        if self._status.failed(scenario, part, cause):
            log.warning(
                "registry_not_followed", scenario=scenario, part=part, problem=cause.text, retry="after a pause"
            )

    def _keep_polling(self, scenario: str, part: str, poll: Callable[[str, httpx.Client, str], str]) -> None:
        """Run one thread for each scenario and part, so that a long poll that hangs delays no other."""
        thread = self._threads.get((scenario, part))
        if thread is None or not thread.is_alive():
            thread = threading.Thread(
                target=self._poll, args=(scenario, part, poll), name=f"{part} of {scenario}", daemon=True
            )
            self._threads[scenario, part] = thread
            thread.start()

    def _poll(self, scenario: str, part: str, poll: Callable[[str, httpx.Client, str], str]) -> None:
        pauses, tag = backoff_seconds(), ""
        with internal_client(
            base_url=self._registry.url.rstrip("/").removesuffix(FILES_PATH),
            timeout=WAIT_SECONDS + NO_ANSWER_SECONDS,
            headers=self._headers,
        ) as client:
            while not self._stop.is_set() and scenario in self._announcements.followed():
                try:
                    tag = poll(scenario, client, tag)
                    self._status.answered(scenario, part)
                    pauses = backoff_seconds()
                except (httpx.HTTPError, HeadwaterModelError) as error:
                    self._failed(scenario, part, _cause(error, scenario))
                    tag = ""  # so that the next answer comes at once and clears the problem
                    self._stop.wait(next(pauses))

    def _poll_rollout(self, scenario: str, client: httpx.Client, tag: str) -> str:
        answer = _long_poll(client, f"/v1/adapters/{scenario}/rollout", tag)
        if answer.status_code == httpx.codes.OK:
            self._announcements.update_rollout(parse_rollout(answer.content, scenario=scenario, source=str(answer.url)))
        return str(answer.headers.get("etag", tag))

    def _poll_latest(self, scenario: str, client: httpx.Client, tag: str) -> str:
        answer = _long_poll(client, f"/v1/adapters/{scenario}/latest", tag)
        if answer.status_code == httpx.codes.OK and not self._stop.wait(GRACE_SECONDS):
            self._announcements.update_latest(parse_manifest(answer.content, source=str(answer.url)), only_newer=True)
        return str(answer.headers.get("etag", tag))


def _long_poll(client: httpx.Client, path: str, tag: str) -> httpx.Response:
    """Wait for a state other than the one of an entity tag.

    Args:
        client: a client of the registry process.
        path: the path to poll.
        tag: the entity tag of the known state; empty if none is known.

    Raises:
        VersionNotFoundError: nothing is published, or the newest version is missing.
        BundleFormatError: the newest version is damaged.
        RegistryUnavailableError: the registry process cannot answer.
    """
    answer = bounded_request(
        client,
        "GET",
        path,
        seconds=WAIT_SECONDS + NO_ANSWER_SECONDS,
        limit_bytes=MANIFEST_LIMIT_BYTES,
        params={"wait_seconds": WAIT_SECONDS},
        headers={"If-None-Match": tag} if tag else {},
    )
    if answer.status_code in (httpx.codes.OK, httpx.codes.NOT_MODIFIED):
        return answer
    problem = f"GET {answer.url}: status {answer.status_code}: {error_detail(answer.content)}"
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise VersionNotFoundError(problem)
    if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
        raise BundleFormatError(problem)
    raise RegistryUnavailableError(problem)


def _cause(error: Exception, scenario: str) -> Cause:
    text = str(error)
    if isinstance(error, VersionNotFoundError) and REGISTRY_IS in text:
        return Cause(REGISTRY, text[text.index(REGISTRY_IS) :])
    if isinstance(error, VersionNotFoundError) and NOTHING_PUBLISHED in text:
        return Cause(REGISTRY, f"the registry is empty: {error}; check that an updater publishes this scenario to it")
    return cause_of(error, scenario)
