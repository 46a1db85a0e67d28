"""Waits until workers obey a rollout, and reports which do and which do not."""

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

LOOK_SECONDS = 0.5  # between two looks at the workers
ASK_SECONDS = 5.0  # for one worker to answer
ANSWER_LIMIT_BYTES = 2**20
COMPLETE_SECONDS = 2.5 * REPORT_SECONDS  # after the start of a registry process every worker has reported to it


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker as it was last seen.

    Attributes:
        name: Its name, or the URL that was asked.
        changed: Revision and time of the rollout that it obeys; None where it could not be asked.
        arms: Version that each arm serves.
        problems: Sentences about what it cannot have at present, or why it could not be asked.
    """

    name: str
    changed: tuple[int, int] | None
    arms: Mapping[str, int]
    problems: Sequence[str] = ()

    def fault(self, rollout: Rollout) -> str | None:
        """Explain why the worker does not obey a rollout; None when it does."""
        faults = list(self._faults(rollout))
        return "; ".join([*faults, *self.problems]) if faults else None

    def _faults(self, rollout: Rollout) -> Iterator[str]:
        if self.changed is None:
            yield "its state is not known"
            return
        if self.changed != (rollout.revision, rollout.changed_at_ms):
            yield (
                f"it follows revision {self.changed[0]}, not {rollout.revision}"
                if self.changed[0] != rollout.revision
                else f"it follows another change of revision {rollout.revision}"
            )
        for arm, version in _wanted(rollout).items():
            found = self.arms.get(arm)
            if found is None:
                yield f"it serves no {arm} version"
            elif version not in (None, found):
                yield f"it serves version {found} as {arm}, not version {version}"


def wait_for_workers(
    access: RegistryClient,
    rollout: Rollout,
    *,
    urls: Sequence[str],
    wait_seconds: float,
    show: Callable[[str], object],
) -> bool:
    """Wait until every worker that can be seen obeys; returns whether all do.

    The rollout is read again at each look: one that was changed meanwhile is reported and not waited for.

    Args:
        access: The registry.
        rollout: As it was written.
        urls: Workers to ask themselves, beside those that report to the registry process.
        wait_seconds: Longest wait.
        show: Takes each line of the report.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        now = _rollout_of(access, rollout)
        if now != rollout:
            show(
                f"revision {rollout.revision} does not hold any more: revision {now.revision} by "
                f"{now.changed_by or 'nobody'} replaced it"
            )
            return False
        workers, lacking = _look(access, rollout.scenario, urls)
        faults = {worker.name: worker.fault(rollout) for worker in workers}
        if (lacking is None and not any(faults.values())) or time.monotonic() >= deadline:
            break
        time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
    if lacking is not None:
        show(lacking)
    elif not workers:
        show(f"no worker can be seen: {_why_none(access, rollout.scenario)}")
    obeying = sum(fault is None for fault in faults.values())
    if workers:
        show(f"{obeying} of {len(workers)} workers that can be seen obey revision {rollout.revision}")
    for worker in workers:
        fault = faults[worker.name]
        served = ", ".join(f"{arm} version {version}" for arm, version in worker.arms.items())
        show(f"  {worker.name}: " + (f"obeys, serves {served}" if fault is None else f"does not obey: {fault}"))
    return obeying == len(workers) and lacking is None


def _rollout_of(access: RegistryClient, rollout: Rollout) -> Rollout:
    """Read the rollout again; where the registry does not answer for a moment, the one that was written stands."""
    try:
        return access.registry.rollout(rollout.scenario)
    except RegistryUnavailableError:
        return rollout


def _look(access: RegistryClient, scenario: str, urls: Sequence[str]) -> tuple[list[Seen], str | None]:
    """The workers that can be seen, and why the registry process may not list all of its own; None when it does."""
    found: dict[str, Seen] = {}
    fleet, lacking = None, None
    try:
        fleet = access.fleet(scenario)
    except RegistryError as error:
        lacking = f"the registry does not list its workers: {error}"
    if fleet is not None:
        for own in fleet.workers:
            arms = {str(arm): version for arm, version in own.arms.items()}
            found[own.worker] = Seen(own.worker, (own.revision, own.changed_at_ms), arms, own.problems)
        if fleet.watched_seconds < COMPLETE_SECONDS:
            lacking = "the registry process has just started, and workers may not have reported to it yet"
    for url in urls:
        asked = _ask(url, scenario)
        found[asked.name] = asked
    return list(found.values()), lacking


def _ask(url: str, scenario: str) -> Seen:
    """Ask a worker whether it is ready, and what it serves."""
    url = url.rstrip("/")
    try:
        with internal_client(timeout=ASK_SECONDS) as client:
            answer = bounded_request(
                client, "GET", f"{url}/readyz", seconds=ASK_SECONDS, limit_bytes=ANSWER_LIMIT_BYTES
            )
        if answer.status_code != httpx.codes.OK:
            return Seen(url, None, {}, [f"it is not ready: {error_detail(answer.content)}"])
        body = answer.json()
        if body["scenario"] != scenario:
            return Seen(url, None, {}, [f"`/readyz` is about its scenario {body['scenario']!r}"])
        changed = int(body["rollout_revision"]), int(body["rollout_changed_at_ms"])
        return Seen(str(body["worker"]), changed, dict(body["arms"]), list(body["problems"]))
    except httpx.HTTPError as error:
        return Seen(url, None, {}, [f"it does not answer: {error or type(error).__name__}"])
    except (ValueError, KeyError, TypeError):
        return Seen(url, None, {}, ["what answers is no scorer of this release"])


def _wanted(rollout: Rollout) -> dict[str, int | None]:
    """The version that each arm is to serve; None follows the latest."""
    wanted = {"stable": rollout.stable_version}
    wanted |= {"canary": rollout.canary.version} if rollout.canary is not None else {}
    return wanted | ({"shadow": rollout.shadow.version} if rollout.shadow is not None else {})


def _why_none(access: RegistryClient, scenario: str) -> str:
    """Explain why no worker is seen, and what would make one seen."""
    if access.fleet(scenario) is None:
        return "this registry is no process that workers report to; name scorers with --worker http://HOST:PORT"
    return (
        f"none has reported to this registry process for {EXPIRY_SECONDS:g} s; scorers report where "
        "`scorer.registry_url` is its address; name others with --worker http://HOST:PORT"
    )
