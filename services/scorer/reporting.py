"""Reports of what a worker serves, sent to the registry process: they show operators which workers follow a rollout."""

import os
import re
import socket
import threading
import time

import httpx
import structlog

from peft_adapters.registry.http_deadline import bounded_request
from peft_adapters.registry.internal_http import error_detail, internal_client
from peft_adapters.registry.rollout import Rollout
from services.registry.fleet import MOST_PROBLEMS, PROBLEM_CHARACTERS, REPORT_SECONDS, WorkerReport
from services.scorer.bundles import FILES_PATH
from services.scorer.deployment import Deployment
from services.scorer.service import ScoringService

CHECK_SECONDS = 0.25  # between two checks for changes
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 5.0  # after a report that failed
ANSWER_LIMIT_BYTES = 65_536

log = structlog.get_logger(__name__)


def worker_name(port: int) -> str:
    """Return the name of this process: host, port and process id.

    Args:
        port: the port that it will listen on.
    """
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:80] or "host"
    return f"{host}-{port}-{os.getpid()}"


class WorkerReporter:
    """Sends a report of each scenario when it changes, and every `REPORT_SECONDS`, unless the registry is files.

    Args:
        url: the address of the registry.
        service: what this worker serves.
        name: the name of the worker.
        api_key: the key for the registry process, of scope `read`.
    """

    def __init__(self, url: str, service: ScoringService, *, name: str, api_key: str | None = None) -> None:
        self._url, self._service, self._name = url.rstrip("/").removesuffix(FILES_PATH), service, name
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._stop = threading.Event()
        self._sent: dict[str, tuple[WorkerReport, float]] = {}  # with monotonic seconds
        self._failed = False

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Report until stopped."""
        if not self._url.startswith(("http://", "https://")):
            return
        with internal_client(base_url=self._url, timeout=ANSWER_SECONDS, headers=self._headers) as client:
            while not self._stop.wait(CHECK_SECONDS):
                try:
                    self._report(client)
                except httpx.HTTPError as error:
                    self._report_failure(str(error) or type(error).__name__)

    def _report(self, client: httpx.Client) -> None:
        reports = reports_of(self._service)
        self._sent = {scenario: sent for scenario, sent in self._sent.items() if scenario in reports}
        for scenario, report in reports.items():
            before, at = self._sent.get(scenario, (None, 0.0))
            if report == before and time.monotonic() - at < REPORT_SECONDS:
                continue
            answer = bounded_request(
                client,
                "PUT",
                f"/v1/adapters/{scenario}/workers/{self._name}",
                seconds=ANSWER_SECONDS,
                limit_bytes=ANSWER_LIMIT_BYTES,
                json=report.model_dump(),
            )
            if not answer.is_success:
                self._report_failure(f"status {answer.status_code}: {error_detail(answer.content)}")
                return
            self._sent[scenario] = (report, time.monotonic())
            self._failed = False

    def _report_failure(self, problem: str) -> None:
        """Log the first failure in a row, and pause."""
        if not self._failed:
            log.warning("worker_not_reported", problem=problem, effect="registry does not list this worker")
        self._failed = True
        self._sent.clear()
        self._stop.wait(RETRY_SECONDS)


def reports_of(service: ScoringService) -> dict[str, WorkerReport]:
    """Return the reports of a worker, one for each scenario that it holds.

    Args:
        service: what the worker serves.
    """
    missing = service.health.missing()
    problems = [*service.health.problems().values(), *([] if missing is None else [missing])]
    shown = [problem[:PROBLEM_CHARACTERS] for problem in problems[:MOST_PROBLEMS]]
    deployments = {scenario: Deployment(Rollout(scenario=scenario)) for scenario in service.scenarios.pinned}
    deployments |= service.table.deployments()
    return {
        scenario: WorkerReport(
            ready=missing is None,
            revision=deployment.rollout.revision,
            changed_at_ms=deployment.rollout.changed_at_ms,
            arms={arm: model.version for arm, model in deployment.models.items()},
            problems=shown,
        )
        for scenario, deployment in deployments.items()
    }
