"""Waiting until the workers follow a rollout, with a report of those that do not."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx

from peft_adapters.errors import RegistryError, RegistryUnavailableError
from peft_adapters.registry.http_deadline import bounded_request
from peft_adapters.registry.internal_http import error_detail, internal_client
from peft_adapters.registry.rollout import Rollout
from services.registry.client import RegistryClient
from services.registry.fleet import EXPIRY_SECONDS, REPORT_SECONDS

POLL_SECONDS = 0.5  # between two reads of the workers' states
REQUEST_SECONDS = 5.0  # for one worker to answer
ANSWER_LIMIT_BYTES = 2**20
COMPLETE_SECONDS = 2.5 * REPORT_SECONDS  # by then every worker has reported to a registry process that has started


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The last known state of a worker.

    Attributes:
        name: the worker's name, or the URL of one that did not answer.
        changed: revision and time of the rollout that it follows; None if it did not answer.
        arms: the version that each arm serves.
        problems: sentences about missing dependencies, or the reason why it did not answer.
    """

    name: str
    changed: tuple[int, int] | None
    arms: Mapping[str, int]
    problems: Sequence[str] = ()

    def fault(self, rollout: Rollout) -> str | None:
        """Return why the worker does not follow a rollout; None if it does."""
        faults = list(self._faults(rollout))
        return "; ".join([*faults, *self.problems]) if faults else None

    def _faults(self, rollout: Rollout) -> Iterator[str]:
        if self.changed is None:
            yield "its state is unknown"
            return
        if self.changed != (rollout.revision, rollout.changed_at_ms):
            yield (
                f"it follows revision {self.changed[0]}, not {rollout.revision}"
                if self.changed[0] != rollout.revision
                else f"it follows another change of revision {rollout.revision}"
            )
        for arm, version in _expected_versions(rollout).items():
            served = self.arms.get(arm)
            if served is None:
                yield f"it serves no {arm} version"
            elif version not in (None, served):
                yield f"it serves version {served} as {arm}, not version {version}"


def wait_for_workers(
    client: RegistryClient,
    rollout: Rollout,
    *,
    urls: Sequence[str],
    wait_seconds: float,
    show: Callable[[str], object],
) -> bool:
    """Wait until every visible worker follows a rollout; return whether all do.

    The rollout is read again in each round: one that was changed meanwhile is reported and not waited for.

    Args:
        client: the client of the registry.
        rollout: the rollout that was written.
        urls: workers to query directly, besides those that report to the registry process.
        wait_seconds: the longest wait.
        show: is called with each line of the report.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        now = _rollout_of(client, rollout)
        if now != rollout:
            show(
                f"revision {rollout.revision} was replaced by revision {now.revision}, made by "
                f"{now.changed_by or 'nobody'}"
            )
            return False
        workers, incomplete = _read_states(client, rollout.scenario, urls)
        faults = {worker.name: worker.fault(rollout) for worker in workers}
        if (incomplete is None and not any(faults.values())) or time.monotonic() >= deadline:
            break
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    if incomplete is not None:
        show(incomplete)
    elif not workers:
        show(f"no worker is visible: {_no_workers_reason(client, rollout.scenario)}")
    following = sum(fault is None for fault in faults.values())
    if workers:
        show(f"{following} of {len(workers)} visible workers follow revision {rollout.revision}")
    for worker in workers:
        fault = faults[worker.name]
        served = ", ".join(f"{arm} version {version}" for arm, version in worker.arms.items())
        show(
            f"  {worker.name}: " + (f"follows it, serves {served}" if fault is None else f"does not follow it: {fault}")
        )
    return following == len(workers) and incomplete is None


def _rollout_of(client: RegistryClient, rollout: Rollout) -> Rollout:
    """Read the rollout again; if the registry does not answer for a moment, return the one that was written."""
    try:
        return client.registry.rollout(rollout.scenario)
    except RegistryUnavailableError:
        return rollout


def _read_states(client: RegistryClient, scenario: str, urls: Sequence[str]) -> tuple[list[WorkerState], str | None]:
    """Return the visible workers, and why the registry's list may be incomplete; None if it is complete."""
    states: dict[str, WorkerState] = {}
    fleet, incomplete = None, None
    try:
        fleet = client.fleet(scenario)
    except RegistryError as error:
        incomplete = f"the registry does not list its workers: {error}"
    if fleet is not None:
        for report in fleet.workers:
            arms = {str(arm): version for arm, version in report.arms.items()}
            changed = report.revision, report.changed_at_ms
            states[report.worker] = WorkerState(report.worker, changed, arms, report.problems)
        if fleet.watched_seconds < COMPLETE_SECONDS:
            incomplete = "the registry process has just started, and workers may not have reported to it yet"
    for url in urls:
        state = _query_worker(url, scenario)
        states[state.name] = state
    return list(states.values()), incomplete


def _query_worker(url: str, scenario: str) -> WorkerState:
    """Query a worker's `/readyz` for the versions that it serves."""
    url = url.rstrip("/")
    try:
        with internal_client(timeout=REQUEST_SECONDS) as client:
            answer = bounded_request(
                client, "GET", f"{url}/readyz", seconds=REQUEST_SECONDS, limit_bytes=ANSWER_LIMIT_BYTES
            )
        if answer.status_code != httpx.codes.OK:
            return WorkerState(url, None, {}, [f"it is not ready: {error_detail(answer.content)}"])
        body = answer.json()
        if body["scenario"] != scenario:
            return WorkerState(url, None, {}, [f"`/readyz` is about scenario {body['scenario']!r}"])
        changed = int(body["rollout_revision"]), int(body["rollout_changed_at_ms"])
        return WorkerState(str(body["worker"]), changed, dict(body["arms"]), list(body["problems"]))
    except httpx.HTTPError as error:
        return WorkerState(url, None, {}, [f"it does not answer: {error or type(error).__name__}"])
    except (ValueError, KeyError, TypeError):
        return WorkerState(url, None, {}, ["the answer is not from a scorer of this release"])


def _expected_versions(rollout: Rollout) -> dict[str, int | None]:
    """Return the version that each arm should serve; None follows the latest."""
    expected = {"stable": rollout.stable_version}
    expected |= {"canary": rollout.canary.version} if rollout.canary is not None else {}
    return expected | ({"shadow": rollout.shadow.version} if rollout.shadow is not None else {})


def _no_workers_reason(client: RegistryClient, scenario: str) -> str:
    """Return why no worker is visible, with a remedy."""
    if client.fleet(scenario) is None:
        return "workers report to registry processes only, and this registry is a store; name scorers with --worker http://HOST:PORT"
    return (
        f"none has reported to this registry process for {EXPIRY_SECONDS:g} s; scorers report if "
        "`scorer.registry_url` is its address; name others with --worker http://HOST:PORT"
    )
