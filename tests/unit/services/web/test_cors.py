"""Pages of other origins, over a real server: which may call, and that they can read every answer, errors included."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from services.metrics.access import AccessMetrics
from services.settings import SettingsError, load_settings
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.keys import KeysFile
from services.web.access.scope_rules import events_or_read
from services.web.access.scopes import Scope
from services.web.bodies import BodyRules
from services.web.http import ProblemError, add_problem_handlers
from services.web.server import running

SHOP = "https://shop.example"
PREFLIGHT = {
    "Origin": SHOP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


class Event(BaseModel):
    name: str


@contextmanager
def application(
    origins: tuple[str, ...], security: SecuritySettings | None = None
) -> Iterator[tuple[httpx.Client, CollectorRegistry]]:
    app, series = FastAPI(), CollectorRegistry()
    add_problem_handlers(app)
    install_access_control(
        app,
        AccessRules(security=security or SecuritySettings(), limits=LimitSettings(request_seconds=5, body_seconds=5)),
        AccessMetrics(series),
        required_scope=events_or_read,
        body_rules=BodyRules(max_bytes=1_000),
        cors_origins=origins,
    )

    @app.post("/v1/events")
    async def events(event: Event) -> str:
        if event.name == "full":
            raise ProblemError(429, "full", headers={"Retry-After": "10"})
        if event.name == "broken":
            raise RuntimeError("broken")
        return event.name

    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client, series


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.json")


@pytest.fixture
def token(keys: KeysFile) -> str:
    return keys.make("page", [Scope.events])


@pytest.fixture
def client(keys: KeysFile, token: str, tmp_path: Path) -> Iterator[httpx.Client]:
    with application((SHOP,), SecuritySettings(keys_file=tmp_path / "keys.json")) as (client, _):
        yield client


def test_a_preflight_is_asked_for_no_key(token: str, keys: KeysFile, tmp_path: Path) -> None:
    security = SecuritySettings(keys_file=tmp_path / "keys.json")
    with application((SHOP, "http://localhost:3000"), security) as (client, series):
        answer = client.options("/v1/events", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert {"authorization", "content-type"} <= set(allowed.split(", "))
        assert "access-control-allow-credentials" not in answer.headers
        assert series.get_sample_value("headwater_turned_away_total", {"reason": "missing"}) == 0


@pytest.mark.parametrize(
    "changed", [{"Origin": "https://evil.example"}, {"Origin": f"{SHOP}:8443"}, {"Origin": "null"}]
)
def test_a_page_of_another_origin_is_not_allowed(client: httpx.Client, changed: dict[str, str]) -> None:
    answer = client.options("/v1/events", headers=PREFLIGHT | changed)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b'{"name": "a"}', 200),
        ({"Authorization": "Bearer none"}, b'{"name": "a"}', 401),
        ({}, b'{"name": "full"}', 429),
        ({}, b'{"name": "broken"}', 500),
        ({}, b'{"name": 7}', 422),
        ({}, b" " * 1_001, 413),
        ({"Content-Type": "text/plain"}, b'{"name": "a"}', 415),
        ({"Content-Encoding": "br"}, b'{"name": "a"}', 415),
        ({"Content-Encoding": "gzip"}, b'{"name": "a"}', 400),
    ],
)
def test_a_page_can_read_every_answer(
    client: httpx.Client, token: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Origin": SHOP} | headers
    answer = client.post("/v1/events", content=content, headers=sent)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert "Origin" in answer.headers["vary"]
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"


def test_all_origins_if_the_setting_says_so() -> None:
    with application(("*",)) as (client, _):
        headers = {"Origin": "https://any.example"}
        answer = client.post("/v1/events", json={"name": "a"}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert client.options("/v1/events", headers=PREFLIGHT | headers).status_code == 200


def test_none_by_default() -> None:
    with application(()) as (client, _):
        answer = client.post("/v1/events", json={"name": "a"}, headers={"Origin": SHOP})
        assert "access-control-allow-origin" not in answer.headers
        assert client.options("/v1/events", headers=PREFLIGHT).status_code == 405


def test_an_options_request_that_is_no_preflight_needs_a_key(client: httpx.Client) -> None:
    assert client.options("/v1/events").status_code == 401


@pytest.mark.parametrize("section", ["collector", "scorer"])
@pytest.mark.parametrize(
    "origins",
    [
        [],
        ["*"],
        ["https://shop.example", "http://localhost:3000", "http://[::1]:8080", "https://xn--bcher-kva.example"],
    ],
)
def test_origins_are_settings(section: str, origins: list[str]) -> None:
    settings = load_settings(None, **{section: {"cors_origins": origins}})
    assert getattr(settings, section).cors_origins == tuple(origins)


def test_origins_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_COLLECTOR__CORS_ORIGINS", f'["{SHOP}"]')
    assert load_settings(None).collector.cors_origins == (SHOP,)


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [
        ("https://shop.example/", SHOP),
        ("https://shop.example/cart", SHOP),
        ("https://Shop.example", SHOP),
        ("https://shop.example:443", SHOP),
        ("https://ann:secret@shop.example", SHOP),
        ("https://shop.example?x", SHOP),
        ("shop.example", SHOP),
        ("//shop.example", SHOP),
        ("https://*.shop.example", SHOP),
        ("https://shop.example:99999", SHOP),
        ("https://bücher.example", SHOP),
        ("ftp://shop.example", SHOP),
        ("null", SHOP),
        ("", SHOP),
        (" https://shop.example", SHOP),
    ],
)
def test_what_is_no_origin_is_refused_with_the_rule(origin: str, remedy: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(None, scorer={"cors_origins": [origin]})
    told = str(refused.value)
    assert told.startswith("setting `scorer.cors_origins`: an origin must be scheme://host[:port]")
    assert f"got {origin!r}; write {remedy!r}" in told


def test_all_and_some_together_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"'\*' must stand alone"):
        load_settings(None, collector={"cors_origins": ["*", SHOP]})
