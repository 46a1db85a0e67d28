"""Commands that change a rollout wait for the visible workers, and report which follow it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from scorer_stage import Stage, until
from structlog.testing import capture_logs
from tiny_model import tiny_encoder
from typer.testing import CliRunner

from peft_adapters.registry.bundle import read_manifest
from peft_adapters.registry.manifest import manifest_bytes
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from services.cli import app as commands
from services.metrics.scorer import ScorerMetrics
from services.operate.adapters import rollout_wait
from services.registry import fleet
from services.registry.app import create_app
from services.scorer import reporting
from services.scorer.app import create_app as scorer_app
from services.scorer.following import RegistryFollower
from services.scorer.reporting import WorkerReporter
from services.settings.scorer import ScorerSettings
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.install import AccessRules
from services.web.access.keys import KeysFile
from services.web.access.scopes import Scope
from services.web.server import running

BASE = {name: None for name in os.environ if name.startswith("HEADWATER_")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reports come often, and a command's logging does not outlive its stream."""
    monkeypatch.setattr("services.logs.configure_logging", lambda **_: None)
    monkeypatch.setattr(reporting, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(reporting, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(rollout_wait, "COMPLETE_SECONDS", 0.5)
    monkeypatch.setattr(fleet, "EXPIRY_SECONDS", 3.0)
    with capture_logs():
        yield


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A worker, and three versions in its registry."""
    stage = Stage(tmp_path, tiny_encoder())
    stage.publish(1, full=True)
    stage.publish(2)
    stage.publish(3, full=True)
    return stage


@contextmanager
def at_work(*parts: object) -> Iterator[None]:
    threads = [threading.Thread(target=part.run, daemon=True) for part in parts]  # type: ignore[attr-defined]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for part in parts:
            part.stop()  # type: ignore[attr-defined]
        for thread in threads:
            thread.join(30)


@contextmanager
def serving_worker(stage: Stage, registry: str, *, name: str = "a", follows: bool = True) -> Iterator[None]:
    """The stage's worker, which reports to a registry and follows it."""
    stage.reader.catalogue_read.set()
    stage.reader.caught_up.set()
    follower = RegistryFollower(
        AdapterRegistry(registry if "://" not in registry else f"{registry}/v1/files"),
        stage.announcements,
        poll_seconds=0.05,
    )
    reporter = WorkerReporter(f"{registry}/v1/files", stage.service, name=name)
    with at_work(stage.worker, reporter, *([follower] if follows else [])):
        until(lambda: stage.health.missing() is None)
        yield


def run(registry: str, *arguments: str) -> tuple[int, str]:
    env: dict[str, str | None] = BASE | {
        "HEADWATER_REGISTRY__URL": registry,
        "HEADWATER_REGISTRY__ANNOUNCE_ROLLOUTS": "false",
    }
    result = CliRunner().invoke(commands, ["adapters", *arguments], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def listed(url: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = httpx.get(f"{url}/v1/adapters/home/workers").json()["workers"]
    return found


def test_a_command_returns_once_the_worker_serves_what_was_asked_for(stage: Stage) -> None:
    with running(create_app(stage.registry)) as url, serving_worker(stage, url):
        for arguments, served in (
            (("pin", "1"), "stable version 1"),
            (("canary", "--percent", "50", "--version", "2"), "stable version 1, canary version 2"),
            (("promote",), "stable version 2"),
            (("shadow", "--version", "1"), "stable version 2, shadow version 1"),
            (("unpin",), "stable version 3, shadow version 1"),
        ):
            status, said = run(url, *arguments)
            assert status == 0, said
            assert said.splitlines()[-1] == f"  a: follows it, serves {served}"
            assert "1 of 1 visible workers follow revision" in said
            (own,) = listed(url)
            models = stage.table.deployments()["home"].models
            assert own["arms"] == {arm: model.version for arm, model in models.items()}


def test_a_worker_that_does_not_obey_is_named_with_what_it_serves(stage: Stage) -> None:
    with running(create_app(stage.registry)) as url, serving_worker(stage, url, name="deaf", follows=False):
        report = {"ready": True, "revision": 0, "changed_at_ms": 0, "arms": {"stable": 3}, "problems": ["a full disk"]}
        httpx.put(f"{url}/v1/adapters/home/workers/full", json=report).raise_for_status()
        status, said = run(url, "pin", "1", "--wait-seconds", "1.5")
    assert status == 1
    assert "0 of 2 visible workers follow revision 1" in said
    assert (
        "  deaf: does not follow it: it follows revision 0, not 1; it serves version 3 as stable, not version 1" in said
    )
    assert said.rstrip().endswith("it serves version 3 as stable, not version 1; a full disk")


def test_a_worker_that_refuses_the_version_says_why(stage: Stage) -> None:
    """The files are as they were published, and no scorer of this encoder can serve them."""
    directory = stage.publications.full(4)
    manifest_path = directory / "manifest.json"
    foreign = read_manifest(directory).model_copy(update={"base_digest": "another"})
    manifest_path.write_bytes(manifest_bytes(foreign))
    stage.registry.publish(directory, foreign)
    with running(create_app(stage.registry)) as url, serving_worker(stage, url):
        until(lambda: listed(url) != [])
        status, said = run(url, "pin", "4", "--wait-seconds", "3")
    assert status == 1
    assert "it serves version 3 as stable, not version 4" in said
    assert "version 4 of 'home' is refused: version 4 was made for another base model" in said
    assert str(stage.directory) not in said


def test_a_worker_that_is_gone_is_listed_no_longer(stage: Stage) -> None:
    with running(create_app(stage.registry)) as url:
        with serving_worker(stage, url):
            until(lambda: listed(url) != [])
        status, said = run(url, "pin", "1", "--wait-seconds", "20")
        assert listed(url) == []
    assert (status, said.splitlines()[-1][:46]) == (0, "no worker is visible: none has reported to thi")


def test_where_the_registry_is_files_workers_are_asked_themselves(stage: Stage) -> None:
    metrics, series = ScorerMetrics(CollectorRegistry()), CollectorRegistry()
    application = scorer_app(stage.service, ScorerSettings(), metrics, series, name="b")
    with running(application) as worker, serving_worker(stage, stage.registry.url):
        status, said = run(stage.registry.url, "pin", "1", "--worker", worker)
        assert (status, said.splitlines()[-1]) == (0, "  b: follows it, serves stable version 1")
        status, said = run(stage.registry.url, "unpin", "--wait-seconds", "0")
        assert (status, len(said.splitlines())) == (0, 2)
        status, said = run(stage.registry.url, "pin", "1", "--worker", "http://127.0.0.1:1", "--wait-seconds", "1")
        assert status == 1
        assert "http://127.0.0.1:1: does not follow it: its state is unknown; it does not answer" in said
    status, said = run(stage.registry.url, "pin", "2")
    assert status == 0
    assert said.splitlines()[-1].startswith(
        "no worker is visible: workers report to registry processes only, and this registry is a store"
    )


def test_a_rollout_that_was_replaced_meanwhile_is_not_reported_as_obeyed(stage: Stage) -> None:
    with running(create_app(stage.registry)) as url:
        report = {"ready": True, "revision": 0, "changed_at_ms": 0, "arms": {"stable": 3}}
        httpx.put(f"{url}/v1/adapters/home/workers/slow", json=report).raise_for_status()

        def replace() -> None:
            until(lambda: stage.registry.rollout("home").revision == 1)
            stage.registry.set_rollout(stage.registry.rollout("home").pinned(2, changed_by="bob"))

        other = threading.Thread(target=replace)
        other.start()
        status, said = run(url, "pin", "1")
        other.join()
    assert status == 1
    assert said.rstrip().endswith("revision 1 was replaced by revision 2, made by bob")


def test_workers_report_with_the_key_that_they_read_with(stage: Stage, tmp_path: Path) -> None:
    read = KeysFile(tmp_path / "keys.json").make("worker", [Scope.read])
    security = SecuritySettings(keys_file=tmp_path / "keys.json")
    report = {"ready": True, "revision": 0, "changed_at_ms": 0, "arms": {}}
    with running(create_app(stage.registry, access=AccessRules.from_settings(LimitSettings(), security))) as url:
        path = f"{url}/v1/adapters/home/workers/a"
        assert httpx.put(path, json=report).status_code == 401
        headers = {"Authorization": f"Bearer {read}"}
        assert httpx.put(path, json=report, headers=headers).status_code == 204
        assert httpx.post(f"{url}/v1/adapters/home/pin", json={"version": 1}, headers=headers).status_code == 403
        for wrong in ({**report, "arms": {"left": 1}}, {**report, "problems": ["x" * 501]}, {"ready": True}):
            assert httpx.put(path, json=wrong, headers=headers).status_code == 422


def test_the_table_is_bounded() -> None:
    table = fleet.Fleet()
    report = fleet.WorkerReport(ready=True, revision=0, changed_at_ms=0, arms={"stable": 1})
    for number in range(fleet.MOST_REPORTS + 5):
        table.report("home", f"w{number}", report)
    names = {worker.worker for worker in table.view("home").workers}
    assert len(names) == fleet.MOST_REPORTS
    assert "w4" not in names
    assert table.view("ads").workers == []


def test_a_stable_arm_that_follows_the_latest_is_obeyed_by_any_version() -> None:
    rollout = Rollout(scenario="home", revision=2, changed_at_ms=7)
    assert rollout_wait.WorkerState("a", (2, 7), {"stable": 9}).fault(rollout) is None
    assert rollout_wait.WorkerState("a", (2, 7), {}).fault(rollout) == "it serves no stable version"
    assert (
        rollout_wait.WorkerState("a", (2, 6), {"stable": 9}).fault(rollout) == "it follows another change of revision 2"
    )
