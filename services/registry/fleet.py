"""The fleet: workers that report to a registry process, with the version that each serves and its problems.

Workers report when something changes and every `REPORT_SECONDS`. The table lives in the memory of the process: after a
restart it is complete once every worker has reported again. With several registry processes, each knows only the
workers that report to it.
"""

import re
import time
from typing import Annotated, Literal

from fastapi import FastAPI, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from peft_adapters.registry.manifest import MAX_COUNT, MAX_VERSION, check_scenario
from services.registry.openapi import READS, REPORTS, ScenarioName
from services.web.access.scope_rules import read_or_admin
from services.web.access.scopes import Scope
from services.web.json_types import NUMBER_ONLY, Flag

REPORT_SECONDS = 2.0
EXPIRY_SECONDS = 10.0  # a worker that has not reported for so long is no longer listed
MOST_REPORTS = 2_000  # held at a time; beyond that the oldest is dropped
MOST_PROBLEMS, PROBLEM_CHARACTERS = 10, 500
WORKER_PATTERN = r"[A-Za-z0-9._-]{1,120}"

_REPORT_PATH = re.compile(r"/v1/adapters/[^/]+/workers/[^/]+")

WorkerName = Annotated[
    str,
    Path(pattern=f"^{WORKER_PATTERN}$", examples=["scorer-1-8080-17"], description="Identifies a worker process."),
]
_Version = Annotated[int, Field(ge=1, le=MAX_VERSION), NUMBER_ONLY]
_Count = Annotated[int, Field(ge=0, le=MAX_COUNT), NUMBER_ONLY]


class WorkerReport(BaseModel):
    """The state of one scenario in one worker.

    Attributes:
        ready: whether the worker answers requests with all dependencies available.
        revision: revision of the rollout that it follows.
        changed_at_ms: time of that rollout, epoch milliseconds.
        arms: version that each arm serves.
        problems: sentences about what is missing at present.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ready: Flag
    revision: _Count
    changed_at_ms: _Count
    arms: dict[Literal["stable", "canary", "shadow"], _Version]
    problems: list[Annotated[str, Field(max_length=PROBLEM_CHARACTERS)]] = Field(default=[], max_length=MOST_PROBLEMS)


class SeenWorker(WorkerReport):
    """A worker's report with its name and age."""

    worker: str
    seconds_ago: float


class FleetView(BaseModel):
    """The workers of a scenario that have reported lately.

    Attributes:
        watched_seconds: age of the table; before two report periods it may lack workers.
        workers: the reports, sorted by worker name.
    """

    model_config = ConfigDict(frozen=True)

    watched_seconds: float
    workers: list[SeenWorker]


class Fleet:
    """A bounded table of reports, each of which expires. It belongs to one event loop."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._reports: dict[tuple[str, str], tuple[WorkerReport, float]] = {}  # with monotonic seconds, oldest first

    def report(self, scenario: str, worker: str, report: WorkerReport) -> None:
        """Replace a worker's report.

        Args:
            scenario: the scenario that the report is about.
            worker: the worker's name.
            report: the worker's state.
        """
        self._reports.pop((scenario, worker), None)
        self._reports[scenario, worker] = (report, time.monotonic())
        while len(self._reports) > MOST_REPORTS:
            self._reports.pop(next(iter(self._reports)))

    def view(self, scenario: str) -> FleetView:
        """Return the workers of a scenario that have reported lately."""
        now = time.monotonic()
        for key in [key for key, (_, at) in self._reports.items() if now - at > EXPIRY_SECONDS]:
            del self._reports[key]
        workers = [
            SeenWorker(worker=worker, seconds_ago=now - at, **report.model_dump())
            for (reported, worker), (report, at) in sorted(self._reports.items(), key=lambda entry: entry[0])
            if reported == scenario
        ]
        return FleetView(watched_seconds=now - self._began, workers=workers)


def add_fleet(app: FastAPI, fleet: Fleet) -> None:
    """Add the calls that report workers and list them.

    Args:
        app: the registry's application.
        fleet: the table of reports.
    """

    @app.put("/v1/adapters/{scenario}/workers/{worker}", status_code=204, responses=REPORTS)
    async def report(scenario: ScenarioName, worker: WorkerName, report: WorkerReport) -> Response:
        """Report what a worker serves; workers do so when it changes and every two seconds."""
        fleet.report(check_scenario(scenario), worker, report)
        return Response(status_code=204)

    @app.get("/v1/adapters/{scenario}/workers", responses=READS)
    async def workers(scenario: ScenarioName) -> FleetView:
        """List the workers that have reported in the last ten seconds, with versions by arm and problems."""
        return fleet.view(check_scenario(scenario))


def required_scope(method: str, path: str) -> Scope:
    """Return the scope that a call of the registry process needs: workers report with their key of scope `read`.

    >>> required_scope("PUT", "/v1/adapters/home/workers/a").value
    'read'
    >>> required_scope("POST", "/v1/adapters/home/pin").value
    'admin'
    """
    if method == "PUT" and _REPORT_PATH.fullmatch(path):
        return Scope.read
    return read_or_admin(method, path)
