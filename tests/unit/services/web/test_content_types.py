"""JSON bodies are parsed once where a route takes nothing else, and are refused as FastAPI refuses them."""

import json

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from services.web.content_types import json_route
from services.web.http import add_problem_handlers
from services.web.json_response import FastJsonResponse


class Order(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid")

    items: tuple[str, ...] = Field(min_length=1)
    share: float = Field(default=0.0, ge=0, allow_inf_nan=False)


def _client(monkeypatch: pytest.MonkeyPatch, *, parses: list[bytes]) -> TestClient:
    """Return a client of an application with a route that takes a body alone, and one that takes the request too."""
    app = FastAPI()
    app.router.route_class = json_route()
    add_problem_handlers(app)
    parse = Order.model_validate_json

    def noted(body: bytes) -> Order:
        parses.append(body)
        return parse(body)

    monkeypatch.setattr(Order, "model_validate_json", noted)

    @app.post("/alone")
    async def alone(order: Order) -> Response:
        return FastJsonResponse(order.model_dump())

    @app.post("/beside")
    async def beside(order: Order, request: Request) -> Response:
        return FastJsonResponse(order.model_dump() | {"method": request.method})

    return TestClient(app)


HEADERS = {"content-type": "application/json"}


def test_a_body_that_is_all_a_route_takes_is_parsed_by_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    parses: list[bytes] = []
    client = _client(monkeypatch, parses=parses)
    assert client.post("/alone", json={"items": ["a"], "share": 0.5}).json() == {"items": ["a"], "share": 0.5}
    assert len(parses) == 1
    answer = client.post("/beside", json={"items": ["a"]}).json()
    assert answer == {"items": ["a"], "share": 0.0, "method": "POST"}
    assert len(parses) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": []}',
        b'{"items": ["a"], "share": -1}',
        b'{"items": ["a"], "share": NaN}',
        b'{"items": ["a"], "more": 1}',
        b'{"items": [1]}',
        b'{"items": ["a"',
        b"[]",
        b"null",
        b"",
        b"\xff",
    ],
)
def test_a_wrong_body_is_refused_as_by_fastapi(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    client = _client(monkeypatch, parses=[])
    alone, beside = (client.post(path, content=body, headers=HEADERS) for path in ("/alone", "/beside"))
    assert alone.status_code == beside.status_code >= 400
    assert alone.json() | {"instance": "/beside"} == beside.json()


def test_encodings_that_only_python_detects_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"items": ["ä"]}).encode("utf-16")
    answer = _client(monkeypatch, parses=[]).post("/alone", content=body, headers=HEADERS)
    assert answer.json() == {"items": ["ä"], "share": 0.0}
