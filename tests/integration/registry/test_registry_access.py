"""A registry behind its access: TLS, keys by scope, and an audit log that names who changed what."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from small_bundle import write_small_bundle

from peft_adapters.errors import RegistryError, RegistryUnavailableError
from peft_adapters.registry.registry import AdapterRegistry
from services.registry.app import create_app
from services.registry.changes import Pin
from services.registry.client import HttpClient
from services.settings.web import LimitSettings, SecuritySettings
from services.web.access.install import AccessRules
from services.web.access.keys import KeysFile
from services.web.access.scopes import Scope
from services.web.server import running

NEW_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 "
)
FOR_LOOPBACK = "-subj /CN=tests -addext subjectAltName=IP:127.0.0.1"


@dataclass
class Desk:
    url: str
    worker: str
    operator: str
    audit: Path

    def audit_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    subprocess.run((NEW_CERTIFICATE + FOR_LOOPBACK).split(), cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))  # what clients trust
    registry = AdapterRegistry(str(tmp_path / "registry"))
    for version in (1, 2):
        registry.publish(tmp_path / str(version), write_small_bundle(tmp_path / str(version), version))
    keys = KeysFile(tmp_path / "keys.json")
    worker, operator = keys.make("workers", [Scope.read]), keys.make("ann", [Scope.read, Scope.admin])
    security = SecuritySettings(
        keys_file=tmp_path / "keys.json",
        tls_certificate=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        audit_log=tmp_path / "audit.jsonl",
    )
    with running(create_app(registry, access=AccessRules.from_settings(LimitSettings(), security))) as url:
        yield Desk(url, worker, operator, tmp_path / "audit.jsonl")


def test_who_shows_a_key_reads_and_who_shows_none_does_not(desk: Desk) -> None:
    latest = AdapterRegistry(f"{desk.url}/v1/files", api_key=desk.worker).latest("home")
    assert latest is not None
    assert latest.version == 2
    with pytest.raises(RegistryUnavailableError, match="401"):
        AdapterRegistry(f"{desk.url}/v1/files").latest("home")
    assert not desk.audit.exists()


def test_who_changes_what_is_served_is_named(desk: Desk) -> None:
    assert HttpClient(desk.url, desk.operator).change("home", Pin(version=1)).stable_version == 1
    began, done = desk.audit_lines()
    assert (began["outcome"], done["outcome"]) == ("began", "done")
    assert (done["action"], done["by"], done["address"]) == ("adapters.pin", f"ann/{desk.operator[3:11]}", "127.0.0.1")
    assert done["asked"]["version"] == 1


def test_who_may_only_read_changes_nothing_and_is_named_too(desk: Desk) -> None:
    with pytest.raises(RegistryError, match=r"403.*scope `admin`"):
        HttpClient(desk.url, desk.worker).change("home", Pin(version=1))
    [line] = desk.audit_lines()
    assert (line["outcome"], line["by"]) == ("refused", f"workers/{desk.worker[3:11]}")
    assert AdapterRegistry(f"{desk.url}/v1/files", api_key=desk.worker).rollout("home").stable_version is None


def test_a_body_that_no_call_needs_is_not_read(desk: Desk) -> None:
    headers = {"Authorization": f"Bearer {desk.operator}"}
    answer = httpx.post(f"{desk.url}/v1/adapters/home/pin", content=b" " * 70_000, headers=headers)
    assert answer.status_code == 413
