"""The calls that change what is served: over real HTTP, recorded in the audit log, one at a time."""

import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryUnavailableError
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from services.audit import AuditLog
from services.registry.app import create_app
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.install import AccessRules
from services.web.access.keys import KeysFile
from services.web.access.scopes import Scope
from services.web.server import running


class Desk:
    """A registry application of three versions, with the rollouts that it announces."""

    def __init__(self, client: httpx.Client, directory: Path, announced: "queue.Queue[Rollout]") -> None:
        self.client, self.directory, self.announced = client, directory, announced

    def ask(self, change: str, scenario: str = "home", **body: Any) -> httpx.Response:
        return self.client.post(f"/v1/adapters/{scenario}/{change}", json=body)

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    registry, announced = AdapterRegistry(str(tmp_path / "registry")), queue.Queue[Rollout]()
    for version in (1, 2, 3):
        registry.publish(tmp_path / str(version), write_small_bundle(tmp_path / str(version), version))
    app = create_app(registry, access=AccessRules(audit=AuditLog(tmp_path / "audit.jsonl")), announce=announced.put)
    with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Desk(client, tmp_path, announced)


def test_each_change_answers_with_the_rollout_that_holds_now(desk: Desk) -> None:
    assert desk.ask("rollback", reason="worse").json()["stable_version"] == 2
    assert desk.ask("canary", percent=5, version=3).json()["canary"]["percent"] == 5
    assert desk.ask("canary/end").json()["canary"] is None
    assert desk.ask("shadow", version=1).json()["shadow"] == {"version": 1}
    assert desk.ask("shadow/end").json()["shadow"] is None
    desk.ask("canary", percent=100)
    assert desk.ask("promote").json()["stable_version"] == 3
    assert desk.ask("pin", version=1).json()["stable_version"] == 1
    last = desk.ask("unpin").json()
    assert (last["stable_version"], last["revision"]) == (None, 9)
    assert desk.client.get("/v1/adapters/home/rollout").json() == last


def test_it_is_announced_to_workers_and_recorded_in_the_audit_log(desk: Desk) -> None:
    desk.ask("pin", version=2, reason="calm")
    assert desk.announced.get(timeout=10).stable_version == 2
    began, done = desk.audited()
    assert (began["outcome"], done["outcome"]) == ("began", "done")
    assert (began["action"], began["scenario"], began["by"]) == ("adapters.pin", "home", "nobody")
    assert began["asked"] == {"version": 2, "reason": "calm"}
    assert began["address"] == "127.0.0.1"


def test_versions_are_shown_and_compared(desk: Desk) -> None:
    desk.ask("pin", version=2)
    shown = desk.client.get("/v1/adapters/home/2").json()
    assert (shown["roles"], shown["chain"], shown["manifest"]["version"]) == (["stable"], [2], 2)
    compared = desk.client.get("/v1/adapters/home/diff?first=1&second=3").json()
    assert (compared["versions"], compared["events_learned"], compared["tensors"]) == ([1, 3], 10, {})
    for path, status in (
        ("9", 404),
        ("0", 422),
        ("9" * 30, 422),
        ("diff?first=1", 422),
        ("diff?first=1&second=9", 404),
    ):
        assert desk.client.get(f"/v1/adapters/home/{path}").status_code == status


@pytest.mark.parametrize(
    ("change", "body", "status", "detail"),
    [
        ("pin", {"version": 9}, 404, "no such version"),
        ("pin", {}, 422, "version"),
        ("pin", {"version": 1, "until": "friday"}, 422, "until"),
        ("rollback", {"version": 3}, 409, "must be below 3"),
        ("pin", {"version": "1"}, 422, "without quotes"),
        ("canary", {"percent": 0}, 422, "percent"),
        ("canary", {"percent": "5"}, 422, "percent"),
        ("canary", {"percent": 5, "auto_rollback": "yes"}, 422, "auto_rollback"),
        ("promote", {}, 409, "no canary to promote"),
        ("unpin", {"if_revision": 4}, 409, "`if_revision`"),
    ],
)
def test_what_cannot_be_is_a_problem_that_says_why(
    desk: Desk, change: str, body: dict[str, Any], status: int, detail: str
) -> None:
    answer = desk.ask(change, **body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert detail in answer.json()["detail"]
    assert str(desk.directory) not in answer.text
    assert desk.client.get("/v1/adapters/home/rollout").json()["revision"] == 0
    assert desk.announced.empty()


def test_a_scenario_that_is_no_name_is_refused(desk: Desk) -> None:
    assert desk.ask("unpin", scenario="HOME").status_code == 422
    assert desk.ask("unpin", scenario="..%2Fhome").status_code == 404
    assert not (desk.directory / "audit.jsonl").exists()


def test_what_cannot_be_audited_is_not_done(desk: Desk) -> None:
    (desk.directory / "audit.jsonl").mkdir()
    answer = desk.ask("pin", version=1)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert "nothing was changed" in answer.json()["detail"]
    assert desk.client.get("/v1/adapters/home/rollout").json()["revision"] == 0


def test_of_many_who_saw_the_same_one_is_heard(desk: Desk) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: desk.ask("pin", version=1, if_revision=0), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]


def test_a_process_over_another_registry_changes_nothing(desk: Desk) -> None:
    over = AdapterRegistry(f"{desk.client.base_url}/v1/files")
    with running(create_app(over)) as url:
        answer = httpx.post(f"{url}/v1/adapters/home/pin", json={"version": 1})
    assert answer.status_code == 403
    assert "send the change there" in answer.json()["detail"]


def test_where_keys_are_asked_for_readers_read_and_admins_change(tmp_path: Path) -> None:
    keys = KeysFile(tmp_path / "keys.json")
    reader, admin = keys.make("worker", [Scope.read]), keys.make("ann", [Scope.admin])
    registry = AdapterRegistry(str(tmp_path / "registry"))
    manifest = write_small_bundle(tmp_path / "1")
    registry.publish(tmp_path / "1", manifest)
    security = SecuritySettings(keys_file=tmp_path / "keys.json", audit_log=tmp_path / "audit.jsonl")
    with running(create_app(registry, access=AccessRules.from_settings(LimitSettings(), security))) as url:
        assert AdapterRegistry(f"{url}/v1/files", api_key=reader).latest("home") == manifest
        with pytest.raises(RegistryUnavailableError, match=r"status 401; give a key .* as `registry\.api_key`"):
            AdapterRegistry(f"{url}/v1/files").latest("home")
        for key, status in ((reader, 403), (admin, 200)):
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(f"{url}/v1/adapters/home/pin", json={"version": 1}, headers=headers)
            assert answer.status_code == status
    assert registry.rollout("home").changed_by.startswith("ann/")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["by"].partition("/")[0], line["outcome"]) for line in lines] == [
        ("worker", "refused"),
        ("ann", "began"),
        ("ann", "done"),
    ]
