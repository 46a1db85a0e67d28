"""Follows a registry without Kafka: by long polls of a registry process, by looks at the files of any other store.

It goes on beside the topic, too: a rollback must reach a worker whose Kafka is gone.
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

WAIT_SECONDS = 20.0  # of one long poll; the registry allows 30
NO_ANSWER_SECONDS = 5.0  # beyond that
NOTHING_PUBLISHED = "nothing has been published"  # as the registry process says it
REGISTRY_IS = "the registry is "  # missing or damaged, likewise
GRACE_SECONDS = 2.0  # for the topic to announce a version first, before it is taken from the registry

log = structlog.get_logger(__name__)


class RegistryFollower:
    """Asks a registry for rollouts and latest versions, for as long as the process lives.

    Args:
        registry: Which.
        announcements: Takes in what is found, and knows which scenarios are followed.
        poll_seconds: Between two looks at a store that cannot be waited on.
        api_key: That a registry process may ask for.
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
        self._seen: dict[str, tuple[int, float]] = {}  # latest version found, and since when, monotonic seconds

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Follow every scenario that is followed."""
        while not self._stop.wait(self._poll_seconds):
            for scenario in self._announcements.followed():
                if self._over_http:
                    for what, ask in (("rollout", self._wait_for_rollout), ("latest", self._wait_for_latest)):
                        self._keep_waiting(scenario, what, ask)
                else:
                    self._look(scenario)

    def _look(self, scenario: str) -> None:
        """Look at a store's files once."""
        part = "rollout"
        try:
            self._announcements.offer_rollout(self._registry.rollout(scenario))
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
            self._announcements.offer(latest, only_newer=True)

    def _failed(self, scenario: str, part: str, cause: Cause) -> None:
        if scenario not in self._announcements.followed():  # let go meanwhile
            return
        if self._status.failed(scenario, part, cause):
            log.warning(
                "registry_not_followed", scenario=scenario, part=part, problem=cause.text, retry="after a pause"
            )

    def _keep_waiting(self, scenario: str, what: str, ask: Callable[[str, httpx.Client, str], str]) -> None:
        """Have one thread wait for each of the two; a long poll that hangs holds up only its own."""
        thread = self._threads.get((scenario, what))
        if thread is None or not thread.is_alive():
            thread = threading.Thread(
                target=self._wait, args=(scenario, what, ask), name=f"{what} of {scenario}", daemon=True
            )
            self._threads[scenario, what] = thread
            thread.start()

    def _wait(self, scenario: str, part: str, ask: Callable[[str, httpx.Client, str], str]) -> None:
        pauses, tag = backoff_seconds(), ""
        with internal_client(
            base_url=self._registry.url.rstrip("/").removesuffix(FILES_PATH),
            timeout=WAIT_SECONDS + NO_ANSWER_SECONDS,
            headers=self._headers,
        ) as client:
            while not self._stop.is_set() and scenario in self._announcements.followed():
                try:
                    tag = ask(scenario, client, tag)
                    self._status.answered(scenario, part)
                    pauses = backoff_seconds()
                except (httpx.HTTPError, HeadwaterModelError) as error:
                    self._failed(scenario, part, _cause(error, scenario))
                    tag = ""  # so that the next answer comes at once, and ends the problem
                    self._stop.wait(next(pauses))

    def _wait_for_rollout(self, scenario: str, client: httpx.Client, tag: str) -> str:
        answer = _ask(client, f"/v1/adapters/{scenario}/rollout", tag)
        if answer.status_code == httpx.codes.OK:
            self._announcements.offer_rollout(parse_rollout(answer.content, scenario=scenario, source=str(answer.url)))
        return str(answer.headers.get("etag", tag))

    def _wait_for_latest(self, scenario: str, client: httpx.Client, tag: str) -> str:
        answer = _ask(client, f"/v1/adapters/{scenario}/latest", tag)
        if answer.status_code == httpx.codes.OK and not self._stop.wait(GRACE_SECONDS):
            self._announcements.offer(parse_manifest(answer.content, source=str(answer.url)), only_newer=True)
        return str(answer.headers.get("etag", tag))


def _ask(client: httpx.Client, path: str, tag: str) -> httpx.Response:
    """Wait for something other than `tag`.

    Raises:
        VersionNotFoundError: Nothing is published, or the newest version is missing.
        BundleFormatError: The newest version is damaged.
        RegistryUnavailableError: The registry process cannot answer.
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
