"""The registry's OpenAPI document: requests made from it, right or wrong, meet what it says, over a real registry."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from document_checks import check_document
from small_bundle import write_small_bundle

from peft_adapters.registry.registry import AdapterRegistry
from services.audit import AuditLog
from services.registry.app import LONG_POLLS, create_app
from services.web.access.install import AccessRules
from services.web.server import running

# What a long poll may be told to wait is in the document. Of 30 s each, a test would do nothing else.
WAIT_SECONDS = 0.2


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr("services.registry.app.LONGEST_WAIT_SECONDS", WAIT_SECONDS)
    registry = AdapterRegistry(str(tmp_path / "registry"))
    for version in (1, 2, 3):
        registry.publish(tmp_path / str(version), write_small_bundle(tmp_path / str(version), version))
    app = create_app(registry, access=AccessRules(audit=AuditLog(tmp_path / "audit.jsonl")))
    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.timeout(900)  # some hundred requests on a machine that may do much else
def test_of_requests_made_from_the_document_none_fails_a_check(client: httpx.Client, tmp_path: Path) -> None:
    check_document(f"{client.base_url}/openapi.json", tmp_path, operations=22)
    # A server that knew nothing would pass, too: that what is published was asked for is part of the test.
    counted = client.get("/metrics").text
    assert len(set(re.findall(r'requests_total\{route="(/v1/[^"]+)",status="200"\} [1-9]', counted))) >= 15
    for poll in LONG_POLLS:
        assert f'route="/v1/adapters/{{scenario}}{poll}",status="304"' in counted


def test_what_a_call_never_answers_is_not_said_of_it(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/healthz"]["get"]["responses"]) == {"200"}
    reading, changing = paths["/v1/adapters/{scenario}/rollout"]["get"], paths["/v1/adapters/{scenario}/pin"]["post"]
    assert set(reading["responses"]) == {"200", "304", "401", "403", "422", "500", "503"}
    assert set(changing["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "404",
        "408",
        "409",
        "413",
        "415",
        "422",
        "500",
        "503",
    }
