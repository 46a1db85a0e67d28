"""Who gets in, over a real server: by scope, until expired or revoked, and no matter what becomes of the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.metrics.access import AccessMetrics
from services.settings.web import SecuritySettings
from services.web.access import key_cache
from services.web.access.api_key_middleware import caller_of
from services.web.access.install import AccessRules, install_access_control
from services.web.access.keys import KeysError, KeysFile
from services.web.access.scope_rules import read_or_admin
from services.web.access.scopes import Scope
from services.web.http import add_problem_handlers, metrics_response
from services.web.server import running


@dataclass
class KeyedApp:
    client: httpx.Client
    keys: KeysFile
    path: Path
    series: CollectorRegistry
    audit: Path

    def get(self, token: str | None, path: str = "/v1/things", method: str = "GET") -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.client.request(method, path, headers=headers)

    def refused(self, reason: str) -> float | None:
        return self.series.get_sample_value("headwater_turned_away_total", {"reason": reason})

    def problem(self) -> float | None:
        return self.series.get_sample_value("headwater_keys_file_problem")

    def audit_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []


@contextmanager
def keyed_app(tmp_path: Path, security: SecuritySettings) -> Iterator[KeyedApp]:
    series = CollectorRegistry()
    app = FastAPI()
    add_problem_handlers(app)
    install_access_control(
        app,
        AccessRules.from_settings(AccessRules().limits, security),
        AccessMetrics(series),
        required_scope=read_or_admin,
    )

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/metrics")
    async def metrics() -> Response:
        return metrics_response(series)

    @app.get("/v1/things")
    @app.put("/v1/things")
    async def things(request: Request) -> dict[str, str]:
        caller = caller_of(request)
        return {"caller": caller.name, "address": caller.address}

    with running(app) as url, httpx.Client(base_url=url) as client:
        yield KeyedApp(
            client, KeysFile(tmp_path / "keys.json"), tmp_path / "keys.json", series, tmp_path / "audit.jsonl"
        )


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyedApp]:
    monkeypatch.setattr(key_cache, "CHECK_SECONDS", 0.0)
    KeysFile(tmp_path / "keys.json").make("first", [Scope.events])
    security = SecuritySettings(keys_file=tmp_path / "keys.json", audit_log=tmp_path / "audit.jsonl")
    with keyed_app(tmp_path, security) as served:
        yield served


def test_who_shows_a_key_of_the_scope_gets_in_and_is_known(served: KeyedApp) -> None:
    token = served.keys.make("shop", [Scope.read])
    answer = served.get(token)
    assert answer.status_code == 200
    assert answer.json() == {"caller": f"shop/{token[3:11]}", "address": "127.0.0.1"}


def test_who_shows_none_is_asked_for_one(served: KeyedApp) -> None:
    answer = served.get(None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="headwater"'
    assert answer.headers["content-type"] == "application/problem+json"
    assert "scope `read`" in answer.json()["detail"]
    assert served.refused("missing") == 1


def test_openapi_says_which_key_a_call_needs(served: KeyedApp, tmp_path: Path) -> None:
    document = served.get(served.keys.make("shop", [Scope.read]), "/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"] == {
        "type": "http",
        "scheme": "bearer",
        "description": "made by `headwater keys new`",
    }
    things = document["paths"]["/v1/things"]
    assert (things["get"]["security"], things["put"]["security"]) == ([{"key": ["read"]}], [{"key": ["admin"]}])
    assert {"200", "401", "403"} <= things["get"]["responses"].keys()
    assert "security" not in document["paths"]["/healthz"]["get"]
    with keyed_app(tmp_path, SecuritySettings()) as open_house:
        assert "securitySchemes" not in open_house.get(None, "/openapi.json").json().get("components", {})


@pytest.mark.parametrize("header", ["Basic c2hvcDpzaG9w", "Bearer", "Bearer hw_0", "bearer x", "Bearer \xe4"])
def test_what_is_no_key_opens_nothing(served: KeyedApp, header: str) -> None:
    answer = served.client.get("/v1/things", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_key(served: KeyedApp, path: str) -> None:
    assert served.get(None, path).status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["/metrics", "/docs", "/openapi.json", "/", "/healthz/", "//healthz", "/healthz/../v1/things"]
)
def test_nothing_else_is_open(served: KeyedApp, path: str) -> None:
    assert served.get(None, path).status_code == 401


def test_a_key_is_good_for_its_scopes_alone(served: KeyedApp) -> None:
    reader, admin = served.keys.make("shop", [Scope.read]), served.keys.make("ops", [Scope.admin])
    refused = served.get(reader, method="PUT")
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="admin"' in refused.headers["www-authenticate"]
    assert served.get(admin, method="PUT").status_code == 200
    assert served.get(admin).status_code == 403  # no scope includes another
    assert served.refused("scope") == 2


def test_who_asks_for_an_admin_call_in_vain_is_in_the_audit_log(served: KeyedApp) -> None:
    reader = served.keys.make("shop", [Scope.read])
    served.get(reader, method="PUT")
    served.get(None, method="PUT")
    [line] = served.audit_lines()
    assert (line["action"], line["outcome"], line["by"]) == ("PUT /v1/things", "refused", f"shop/{reader[3:11]}")


def test_a_revoked_key_is_good_for_nothing_without_a_restart(served: KeyedApp) -> None:
    token = served.keys.make("shop", [Scope.read])
    assert served.get(token).status_code == 200
    served.keys.revoke(token[3:11])
    answer = served.get(token)
    assert answer.status_code == 401
    assert "revoked" not in answer.text  # what became of a key is for its owner to know
    assert served.refused("revoked") == 1


def test_an_expired_key_is_good_for_nothing(served: KeyedApp) -> None:
    token = served.keys.make("shop", [Scope.read], days=1e-9)
    assert served.get(token).status_code == 401
    assert served.refused("expired") == 1


@pytest.mark.parametrize("damage", ["gone", "broken", "open to others"])
def test_the_last_good_keys_count_while_the_file_cannot_be_used(served: KeyedApp, damage: str) -> None:
    token = served.keys.make("shop", [Scope.read])
    assert served.get(token).status_code == 200
    good = served.path.read_bytes()
    if damage == "gone":
        served.path.unlink()
    elif damage == "broken":
        served.path.write_bytes(good[:40])
    else:
        served.path.chmod(0o666)
    with capture_logs() as logs:
        assert [served.get(token).status_code for _ in range(3)] == [200] * 3
    assert [entry["event"] for entry in logs] == ["keys_file_unusable"]  # once
    assert served.problem() == 1
    served.path.unlink(missing_ok=True)
    served.path.write_bytes(good)
    assert served.get(token).status_code == 200
    assert served.problem() == 0


def test_the_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = KeysFile(path).make("shop", [Scope.read])
    ring = key_cache.KeyCache(path, AccessMetrics(CollectorRegistry()))
    later = KeysFile(path).make("later", [Scope.read])
    assert ring.find(token) is not None
    assert ring.find(later) is None  # not looked again yet


def test_without_a_keys_file_there_is_no_start(tmp_path: Path) -> None:
    security = SecuritySettings(keys_file=tmp_path / "keys.json")
    with pytest.raises(KeysError, match="must be readable"), keyed_app(tmp_path, security):
        pass


def test_on_loopback_without_keys_everyone_is_nobody(tmp_path: Path) -> None:
    with keyed_app(tmp_path, SecuritySettings()) as served:
        assert served.get(None, method="PUT").json()["caller"] == "nobody"
