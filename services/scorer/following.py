"""Follows a registry without Kafka: by long polls of a registry process, by looks at the files of any other store.

It goes on beside the topic, too: a rollback must reach a worker whose Kafka is gone.
"""

import threading
import time
from collections.abc import Callable

import httpx
import structlog

from peft_adapters.errors import HeadwaterModelError, RegistryUnavailableError
from peft_adapters.internal_http import internal_client
from peft_adapters.manifest import parse_manifest
from peft_adapters.registry import AdapterRegistry
from peft_adapters.rollout import parse_rollout
from services.scorer.announcements import Announcements
from streams.connection import backoff_seconds

FILES_PATH = "/v1/files"
WAIT_SECONDS = 20.0  # of one long poll; the registry allows 30
NO_ANSWER_SECONDS = 5.0  # beyond that
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
        """One look at a store's files. What fails is the worker's to say, which asks the same store."""
        try:
            self._announcements.offer_rollout(self._registry.rollout(scenario))
            latest = self._registry.latest(scenario)
        except HeadwaterModelError as error:
            log.debug("registry_not_followed", scenario=scenario, problem=str(error))
            return
        if latest is None:
            return
        version, since = self._seen.get(scenario, (0, 0.0))
        if version != latest.version:
            self._seen[scenario] = (latest.version, time.monotonic())
        elif time.monotonic() - since > GRACE_SECONDS:
            self._announcements.offer(latest, only_newer=True)

    def _keep_waiting(self, scenario: str, what: str, ask: Callable[[str, httpx.Client, str], str]) -> None:
        """Have one thread wait for each of the two; a long poll that hangs holds up only its own."""
        thread = self._threads.get((scenario, what))
        if thread is None or not thread.is_alive():
            thread = threading.Thread(
                target=self._wait, args=(scenario, ask), name=f"{what} of {scenario}", daemon=True
            )
            self._threads[scenario, what] = thread
            thread.start()

    def _wait(self, scenario: str, ask: Callable[[str, httpx.Client, str], str]) -> None:
        pauses, tag = backoff_seconds(), ""
        with internal_client(
            base_url=self._registry.url.rstrip("/").removesuffix(FILES_PATH),
            timeout=WAIT_SECONDS + NO_ANSWER_SECONDS,
            headers=self._headers,
        ) as client:
            while not self._stop.is_set() and scenario in self._announcements.followed():
                try:
                    tag = ask(scenario, client, tag)
                    pauses = backoff_seconds()
                except (httpx.HTTPError, HeadwaterModelError) as error:
                    log.debug("registry_not_followed", scenario=scenario, problem=str(error))
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
    """Wait for something other than `tag`. Nothing published is an error, too: it is asked for again after a pause."""
    headers = {"If-None-Match": tag} if tag else {}
    answer = client.get(path, params={"wait_seconds": WAIT_SECONDS}, headers=headers)
    if answer.status_code not in (httpx.codes.OK, httpx.codes.NOT_MODIFIED):
        raise RegistryUnavailableError(f"GET {path}: status {answer.status_code}")
    return answer
