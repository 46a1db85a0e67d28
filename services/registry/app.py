"""The registry's HTTP application: manifests and rollouts, and the registry's files under their own paths."""

import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple

import structlog
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CollectorRegistry

from peft_adapters.errors import (
    HeadwaterModelError,
    LatestFormatError,
    RegistryReadOnlyError,
    RegistryUnavailableError,
    RolloutError,
    RolloutFormatError,
    ScenarioNameError,
    VersionNotFoundError,
    VersionNotKeptError,
)
from peft_adapters.registry.latest_pointer import LATEST_NAME
from peft_adapters.registry.manifest import MANIFEST_NAME, MAX_VERSION, Manifest, manifest_bytes
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import ROLLOUT_NAME, Rollout, rollout_bytes, rollout_etag
from peft_adapters.registry.signing import Verifier
from peft_adapters.registry.stores import LISTING_NAME
from services.metrics.registry import RegistryMetrics
from services.metrics.series import new_registry
from services.registry.admin import add_admin
from services.registry.comparison import Comparison, compare
from services.registry.fleet import Fleet, add_fleet, required_scope
from services.registry.long_poll import LongPoll
from services.registry.openapi import (
    FILE,
    KEYS_ONLY,
    READS,
    READS_PUBLISHED,
    STORE_AWAY,
    UNCHANGED,
    FileName,
    ScenarioName,
    Version,
)
from services.registry.versions import VersionDetails, manifests, version_details
from services.web.access.install import AccessRules, install_access_control
from services.web.bodies import BodyRules
from services.web.http import (
    ProblemError,
    add_problem_handlers,
    metrics_response,
    problem_response,
)
from services.web.routes import api_routes

LONGEST_WAIT_SECONDS = 30.0
MAX_BODY_BYTES = 65_536
LONG_POLLS = ("/latest", "/rollout")
# Documents that may change must be revalidated; a version's files never change.
REVALIDATE = {"Cache-Control": "no-cache"}

log = structlog.get_logger(__name__)

QueriedVersion = Annotated[int, Query(ge=1, le=MAX_VERSION, examples=[1])]
Etags = Annotated[str | None, Header(alias="If-None-Match", description="tags of known values, or `*`", examples=["*"])]


def create_app(
    registry: AdapterRegistry,
    *,
    access: AccessRules | None = None,
    announce: Callable[[Rollout], object] | None = None,
    verify: Verifier | None = None,
) -> FastAPI:
    """Build the application over a registry. It writes nothing but rollouts.

    Args:
        registry: the registry of adapters.
        access: the access rules and the audit log; None lets everyone in and logs changes to the process's log.
        announce: is called with each new rollout; None announces nothing.
        verify: checks the signatures of versions that are to be served; None checks none.
    """
    polls = LongPolls(
        LongPoll(registry.latest, lambda manifest: manifest.digest), LongPoll(registry.rollout, rollout_etag)
    )
    series = new_registry()
    app = FastAPI(title="Headwater adapter registry", lifespan=_stop_polls_on_signals(polls))
    metrics = RegistryMetrics(series)
    access = access or AccessRules()
    install_access_control(
        app,
        access,
        metrics.access,
        required_scope=required_scope,
        is_long_poll=_is_long_poll,
        request_metrics=metrics.http,
        body_rules=BodyRules(max_bytes=MAX_BODY_BYTES, remedy="no call accepts more"),
    )
    add_problem_handlers(app)
    _add_registry_errors(app)
    _add_adapters(app, registry, polls.latest)
    _add_details(app, registry)
    add_fleet(app, Fleet())
    _add_rollout(app, registry, polls.rollout)
    add_admin(app, registry, audit=access.audit, announce=announce, verify=verify)
    _add_files(app, registry)
    _add_health(app, registry, series)
    metrics.http.declare(api_routes(app))
    return app


def _add_adapters(app: FastAPI, registry: AdapterRegistry, poll: LongPoll[Manifest]) -> None:
    @app.get("/v1/adapters/{scenario}", responses=READS)
    def adapters(scenario: ScenarioName) -> list[Manifest]:
        """List the manifests of all versions, oldest first."""
        return list(manifests(registry, scenario))

    @app.get("/v1/adapters/{scenario}/latest", response_model=Manifest, responses=READS_PUBLISHED | UNCHANGED)
    async def latest(
        scenario: ScenarioName,
        if_none_match: Etags = None,
        wait_seconds: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
    ) -> Response:
        """Return the latest manifest; with `If-None-Match` and `wait_seconds`, wait for another one."""
        known = _digests(if_none_match)
        manifest = await poll.newest(scenario, other_than=known, wait_seconds=wait_seconds)
        if manifest is None:
            raise await run_in_threadpool(_no_latest, registry, scenario)
        headers = {"ETag": f'"{manifest.digest}"', **REVALIDATE}
        if manifest.digest in known or "*" in known:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return _manifest_response(manifest, headers)


def _add_details(app: FastAPI, registry: AdapterRegistry) -> None:
    @app.get("/v1/adapters/{scenario}/diff", responses=READS_PUBLISHED)
    def diff(
        scenario: ScenarioName,
        first: QueriedVersion,
        second: QueriedVersion,
    ) -> Comparison:
        """Compare two versions: events learnt between them, and their metrics."""
        return compare(registry, scenario, first, second)

    @app.get("/v1/adapters/{scenario}/{version:int}", responses=READS_PUBLISHED)
    def show(scenario: ScenarioName, version: Version) -> VersionDetails:
        """Return manifest, chain and roles of one version."""
        return version_details(registry, scenario, version)


def _add_rollout(app: FastAPI, registry: AdapterRegistry, poll: LongPoll[Rollout]) -> None:
    @app.get("/v1/adapters/{scenario}/rollout", response_model=Rollout, responses=READS | UNCHANGED)
    async def rollout(
        scenario: ScenarioName,
        if_none_match: Etags = None,
        wait_seconds: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
    ) -> Response:
        """Return the rollout; with `If-None-Match` and `wait_seconds`, wait for another one."""
        known = _digests(if_none_match)
        current = await poll.newest(scenario, other_than=known, wait_seconds=wait_seconds)
        current = current or Rollout(scenario=scenario)
        headers = {"ETag": f'"{rollout_etag(current)}"', **REVALIDATE}
        if rollout_etag(current) in known or "*" in known:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(rollout_bytes(current), media_type="application/json", headers=headers)

    @app.get("/v1/files/{scenario}/" + ROLLOUT_NAME, response_model=Rollout, responses=READS)
    def rollout_file(scenario: ScenarioName) -> Response:
        """Return the rollout under the path of its file."""
        return Response(rollout_bytes(registry.rollout(scenario)), media_type="application/json", headers=REVALIDATE)


def _add_files(app: FastAPI, registry: AdapterRegistry) -> None:
    @app.get("/v1/files/{scenario}/" + LATEST_NAME, response_class=PlainTextResponse, responses=READS_PUBLISHED)
    def latest_version(scenario: ScenarioName) -> Response:
        """Return the number of the latest version."""
        manifest = registry.latest(scenario)
        if manifest is None:
            raise _no_latest(registry, scenario)
        return PlainTextResponse(f"{manifest.version}\n", headers=REVALIDATE)

    @app.get("/v1/files/{scenario}/" + LISTING_NAME, response_model=list[str], responses=READS)
    def manifest_paths(scenario: ScenarioName) -> JSONResponse:
        """Return the paths of all manifests, in place of a directory listing."""
        paths = [f"{version:08d}/{MANIFEST_NAME}" for version in registry.versions(scenario)]
        return JSONResponse(paths, headers=REVALIDATE)

    @app.get(
        "/v1/files/{scenario}/{version}/{file}",
        response_class=StreamingResponse,
        responses=READS_PUBLISHED | UNCHANGED | FILE,
    )
    def file(scenario: ScenarioName, version: Version, file: FileName, if_none_match: Etags = None) -> Response:
        """Return one file of a version; only names in its manifest are read, so that no path can leave it."""
        manifest = registry.manifest(scenario, version)
        if file == MANIFEST_NAME:
            return _manifest_response(manifest, {})
        chunks = registry.chunks(manifest, file)
        first = next(chunks, b"")  # a file that cannot be read is still an error here, not a broken answer later
        entry = manifest.files[file]
        if entry.sha256 in _digests(if_none_match):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": f'"{entry.sha256}"'})
        headers = {"ETag": f'"{entry.sha256}"', "Content-Length": str(entry.bytes)}
        return StreamingResponse(chain([first], chunks), headers=headers, media_type="application/octet-stream")


def _add_health(app: FastAPI, registry: AdapterRegistry, series: CollectorRegistry) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the process runs, whether or not the store answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=STORE_AWAY)
    def readyz() -> dict[str, str]:
        """Report whether the store answers."""
        registry.check()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=KEYS_ONLY)
    async def metrics() -> Response:
        """Return the process's metrics."""
        return metrics_response(series)


def _add_registry_errors(app: FastAPI) -> None:
    @app.exception_handler(HeadwaterModelError)
    async def model_error(request: Request, error: HeadwaterModelError) -> Response:
        # Error texts contain the registry's address, which callers must not learn; they go to the log.
        log.warning("registry_request_failed", path=request.url.path, error=str(error))
        match error:
            case ScenarioNameError():
                return problem_response(request, HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
            case VersionNotKeptError():
                return problem_response(request, HTTPStatus.NOT_FOUND, str(error))
            case LatestFormatError():
                return problem_response(request, HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            case VersionNotFoundError():
                return problem_response(request, HTTPStatus.NOT_FOUND, "no such version, or no such file in it")
            case RegistryReadOnlyError():
                detail = "this registry process only reads from another one; send the change there"
                return problem_response(request, HTTPStatus.FORBIDDEN, detail)
            case RolloutFormatError():
                detail = "the rollout is damaged in the registry; workers stay with the one they know"
                return problem_response(request, HTTPStatus.INTERNAL_SERVER_ERROR, detail)
            case RolloutError():  # the request is valid, and in conflict with the present rollout
                return problem_response(request, HTTPStatus.CONFLICT, str(error))
            case RegistryUnavailableError():
                detail = "the registry's store does not answer; try again"
                return problem_response(request, HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})
            case _:
                detail = "this version is damaged in the registry; use another until it is published again"
                return problem_response(request, HTTPStatus.INTERNAL_SERVER_ERROR, detail)


class LongPolls(NamedTuple):
    """The long polls of the process."""

    latest: LongPoll[Manifest]
    rollout: LongPoll[Rollout]

    def stop(self) -> None:
        """End all waits, present and future."""
        for poll in self:
            poll.stop()


def _stop_polls_on_signals(polls: LongPolls) -> Callable[[FastAPI], Any]:
    """Return a lifespan that answers long polls as soon as a signal ends the process, before their timeout."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if in_main_thread else ():
            _add_signal_action(number, polls.stop)
        yield
        polls.stop()

    return lifespan


def _add_signal_action(number: int, action: Callable[[], None]) -> None:
    before = signal.getsignal(number)

    def handle(received: int, frame: FrameType | None) -> None:
        action()
        if callable(before):
            before(received, frame)

    signal.signal(number, handle)


def _is_long_poll(path: str) -> bool:
    return path.startswith("/v1/adapters/") and path.endswith(LONG_POLLS)


def _digests(if_none_match: str | None) -> set[str]:
    """Return the digests in a list of entity tags.

    >>> sorted(_digests('"a", W/"b"'))
    ['a', 'b']
    """
    return {tag.strip().removeprefix("W/").strip('"') for tag in (if_none_match or "").split(",")} - {""}


def _no_latest(registry: AdapterRegistry, scenario: str) -> ProblemError:
    """Return an error that explains why there is no latest version, without the registry's address."""
    cause = registry.explain_absence(scenario)
    for address in (registry.url, str(Path(registry.url).absolute())):
        cause = cause.replace(address, "<registry>")
    nothing = f"nothing has been published for scenario {scenario!r} yet"
    if cause.startswith("the registry is empty"):
        cause = f"{nothing}; ask again"
    elif cause.startswith("the registry is missing"):
        cause = f"{nothing}: {cause}"
    return ProblemError(HTTPStatus.NOT_FOUND, cause)


def _manifest_response(manifest: Manifest, headers: dict[str, str]) -> Response:
    return Response(manifest_bytes(manifest), media_type="application/json", headers=headers)
