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
class House:
    client: httpx.Client
    keys: KeysFile
    path: Path
    series: CollectorRegistry
    audit: Path

    def get(self, token: str | None, path: str = "/v1/things", method: str = "GET") -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.client.request(method, path, headers=headers)

    def turned_away(self, reason: str) -> float | None:
        return self.series.get_sample_value("headwater_turned_away_total", {"reason": reason})

    def problem(self) -> float | None:
        return self.series.get_sample_value("headwater_keys_file_problem")

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []


@contextmanager
def house_of(tmp_path: Path, security: SecuritySettings) -> Iterator[House]:
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
        yield House(client, KeysFile(tmp_path / "keys.json"), tmp_path / "keys.json", series, tmp_path / "audit.jsonl")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(key_cache, "CHECK_SECONDS", 0.0)
    KeysFile(tmp_path / "keys.json").make("first", [Scope.events])
    security = SecuritySettings(keys_file=tmp_path / "keys.json", audit_log=tmp_path / "audit.jsonl")
    with house_of(tmp_path, security) as house:
        yield house


def test_who_shows_a_key_of_the_scope_gets_in_and_is_known(house: House) -> None:
    token = house.keys.make("shop", [Scope.read])
    answer = house.get(token)
    assert answer.status_code == 200
    assert answer.json() == {"caller": f"shop/{token[3:11]}", "address": "127.0.0.1"}


def test_who_shows_none_is_asked_for_one(house: House) -> None:
    answer = house.get(None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="headwater"'
    assert answer.headers["content-type"] == "application/problem+json"
    assert "scope `read`" in answer.json()["detail"]
    assert house.turned_away("missing") == 1


def test_openapi_says_which_key_a_call_needs(house: House, tmp_path: Path) -> None:
    document = house.get(house.keys.make("shop", [Scope.read]), "/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"] == {
        "type": "http",
        "scheme": "bearer",
        "description": "made by `headwater keys new`",
    }
    things = document["paths"]["/v1/things"]
    assert (things["get"]["security"], things["put"]["security"]) == ([{"key": ["read"]}], [{"key": ["admin"]}])
    assert {"200", "401", "403"} <= things["get"]["responses"].keys()
    assert "security" not in document["paths"]["/healthz"]["get"]
    with house_of(tmp_path, SecuritySettings()) as open_house:
        assert "securitySchemes" not in open_house.get(None, "/openapi.json").json().get("components", {})


@pytest.mark.parametrize("header", ["Basic c2hvcDpzaG9w", "Bearer", "Bearer hw_0", "bearer x", "Bearer \xe4"])
def test_what_is_no_key_opens_nothing(house: House, header: str) -> None:
    answer = house.client.get("/v1/things", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_key(house: House, path: str) -> None:
    assert house.get(None, path).status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["/metrics", "/docs", "/openapi.json", "/", "/healthz/", "//healthz", "/healthz/../v1/things"]
)
def test_nothing_else_is_open(house: House, path: str) -> None:
    assert house.get(None, path).status_code == 401


def test_a_key_is_good_for_its_scopes_alone(house: House) -> None:
    reader, admin = house.keys.make("shop", [Scope.read]), house.keys.make("ops", [Scope.admin])
    refused = house.get(reader, method="PUT")
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="admin"' in refused.headers["www-authenticate"]
    assert house.get(admin, method="PUT").status_code == 200
    assert house.get(admin).status_code == 403  # no scope includes another
    assert house.turned_away("scope") == 2


def test_who_asks_for_an_admin_call_in_vain_is_in_the_audit_log(house: House) -> None:
    reader = house.keys.make("shop", [Scope.read])
    house.get(reader, method="PUT")
    house.get(None, method="PUT")
    [line] = house.told()
    assert (line["action"], line["outcome"], line["by"]) == ("PUT /v1/things", "refused", f"shop/{reader[3:11]}")


def test_a_revoked_key_is_good_for_nothing_without_a_restart(house: House) -> None:
    token = house.keys.make("shop", [Scope.read])
    assert house.get(token).status_code == 200
    house.keys.revoke(token[3:11])
    answer = house.get(token)
    assert answer.status_code == 401
    assert "revoked" not in answer.text  # what became of a key is for its owner to know
    assert house.turned_away("revoked") == 1


def test_an_expired_key_is_good_for_nothing(house: House) -> None:
    token = house.keys.make("shop", [Scope.read], days=1e-9)
    assert house.get(token).status_code == 401
    assert house.turned_away("expired") == 1


@pytest.mark.parametrize("damage", ["gone", "broken", "open to others"])
def test_the_last_good_keys_count_while_the_file_cannot_be_used(house: House, damage: str) -> None:
    token = house.keys.make("shop", [Scope.read])
    assert house.get(token).status_code == 200
    good = house.path.read_bytes()
    if damage == "gone":
        house.path.unlink()
    elif damage == "broken":
        house.path.write_bytes(good[:40])
    else:
        house.path.chmod(0o666)
    with capture_logs() as logs:
        assert [house.get(token).status_code for _ in range(3)] == [200] * 3
    assert [entry["event"] for entry in logs] == ["keys_file_unusable"]  # once
    assert house.problem() == 1
    house.path.unlink(missing_ok=True)
    house.path.write_bytes(good)
    assert house.get(token).status_code == 200
    assert house.problem() == 0


def test_the_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = KeysFile(path).make("shop", [Scope.read])
    ring = key_cache.KeyCache(path, AccessMetrics(CollectorRegistry()))
    later = KeysFile(path).make("later", [Scope.read])
    assert ring.find(token) is not None
    assert ring.find(later) is None  # not looked again yet


def test_without_a_keys_file_there_is_no_start(tmp_path: Path) -> None:
    security = SecuritySettings(keys_file=tmp_path / "keys.json")
    with pytest.raises(KeysError, match="must be readable"), house_of(tmp_path, security):
        pass


def test_on_loopback_without_keys_everyone_is_nobody(tmp_path: Path) -> None:
    with house_of(tmp_path, SecuritySettings()) as house:
        assert house.get(None, method="PUT").json()["caller"] == "nobody"
